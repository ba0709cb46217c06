"""What is checked and written before Ray is started."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import AutoTokenizer

from agents.tokenization import SegmentTokenizer
from igsearch_env.data.questions import load_questions
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.files import write_whole
from igsearch_env.retrieval.base import RetrievalError
from trainers.openrlhf.arguments import check_arguments
from trainers.openrlhf.flags import Flags
from trainers.openrlhf.rollout_settings import RolloutSettings, make_label


def prepare(args: Any, flags: Flags) -> None:
    """Check a run against its flags, and write its prompt data unless it is only to be checked.

    Args:
        args: OpenRLHF's settings, nested, as its validators left them.
        flags: What was asked for.

    Raises:
        ValueError: If the run could not go well.
    """
    check_arguments(args, flags)
    record = {
        "rollout": asdict(flags.rollout),
        "credit": flags.credit,
        "data": {
            "train.seed": args.train.seed,
            "data.max_samples": args.data.max_samples,
            "rollout.batch_size": args.rollout.batch_size,
        },
        "arguments": list(flags.arguments),
    }
    check_folder(flags, record)
    tokenizer = load_tokenizer(args.actor.model_name_or_path)
    engine = flags.rollout.engine(tokenizer)
    held_out = load_questions(flags.rollout.eval_questions) if flags.rollout.eval_questions else []
    asked = whole_batches(engine.questions, args)
    args.ig.steps = len(asked) * args.train.num_episodes // args.rollout.batch_size
    segments = SegmentTokenizer(tokenizer)
    check_prompts(engine, [*engine.questions, *held_out], segments, args.data.max_len)
    check_retriever(engine, flags.rollout)
    if flags.check:
        return
    data = prompt_data(asked, training=True)
    if flags.resume and data != flags.train_data.read_text(encoding="utf-8"):
        raise ValueError(
            f"the questions have changed since the run in {flags.out} began: its place in them "
            f"would be lost; restore {flags.rollout.questions}, or choose another folder"
        )
    write_whole(flags.train_data, data)
    if held_out:
        write_whole(flags.eval_data, prompt_data(held_out, training=False))
    write_whole(flags.out / "config.json", json.dumps(record, indent=2) + "\n")


def whole_batches(questions: Sequence[Question], args: Any) -> list[Question]:
    """The questions that are asked, shuffled: ``--data.max_samples`` at most, in whole batches.

    What a last batch that is not whole gives to one process and not to the others would leave them
    waiting for each other for ever.
    """
    size = args.rollout.batch_size
    count = min(args.data.max_samples, len(questions)) // size * size
    if not count:
        raise ValueError(
            f"there are {len(questions)} questions and --data.max_samples is "
            f"{args.data.max_samples}, but a batch of rollouts asks {size}; give more, or lower "
            "--rollout.batch_size"
        )
    asked = list(questions)
    random.Random(args.train.seed).shuffle(asked)
    return asked[:count]


def check_folder(flags: Flags, record: dict[str, Any]) -> None:
    """Refuse to mix two runs in one folder.

    Args:
        flags: What was asked for.
        record: What ``config.json`` is to hold.
    """
    written = flags.out / "config.json"
    if not written.exists():
        if flags.resume:
            raise ValueError(f"there is no run to resume in {flags.out}: no config.json")
        return
    if not flags.resume and not flags.check:
        raise ValueError(
            f"{flags.out} holds a run already; pass --resume to go on with it, or choose another "
            "folder"
        )
    old = json.loads(written.read_text(encoding="utf-8"))
    changed = [
        f"{section}: {key} was {old[section].get(key)!r}, got {record[section].get(key)!r}"
        for section in ("rollout", "credit", "data")
        for key in sorted(old[section] | record[section])
        if old[section].get(key) != record[section].get(key)
    ]
    if flags.resume and changed:
        raise ValueError(
            f"the run in {flags.out} has other settings ({'; '.join(changed)}); resume it with its "
            "own (config.json), or choose another folder"
        )


def load_tokenizer(path: str | None) -> Any:
    """The policy's tokenizer.

    Raises:
        ValueError: If there is none at that path.
    """
    if not path:
        raise ValueError("there is no policy; give --actor.model_name_or_path")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=True)  # as OpenRLHF does
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load a tokenizer from {path!r}: expected a checkpoint folder or the name of a "
            f"model on the Hugging Face hub ({reason})"
        ) from error


def check_prompts(
    engine: SearchQAEngine,
    questions: Sequence[Question],
    tokenizer: SegmentTokenizer,
    max_len: int,
) -> None:
    """Check that every prompt leaves room for a turn."""
    for question in questions:
        length = len(tokenizer.encode_context(engine.rules.begin(question).transcript))
        if length >= max_len:
            raise ValueError(
                f"the prompt of question {question.id!r} has {length} tokens, which leaves no room "
                f"for a turn in {max_len}; raise --data.max_len, or drop the question"
            )


def check_retriever(engine: SearchQAEngine, rollout: RolloutSettings) -> None:
    """Check that the retriever answers."""
    try:
        engine.retriever.search([engine.questions[0].text], engine.top_k)
    except RetrievalError as error:
        raise ValueError(
            f"the retriever {rollout.retriever!r} does not answer ({error}); start it first, with "
            "igsearch serve"
        ) from error


def prompt_data(questions: Sequence[Question], *, training: bool) -> str:
    """Prompt data as JSONL: ``input`` is the question, ``label`` all that is known of it."""
    rows = (
        {
            "input": question.text,
            "label": make_label(question, training=training),
            "datasource": question.dataset or "default",
        }
        for question in questions
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
