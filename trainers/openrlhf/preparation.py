"""What is checked and written before Ray is started."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import AutoTokenizer

from agents.rollout_settings import RolloutSettings, make_label
from agents.tokenization import SegmentTokenizer
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.questions import load_questions
from igsearch_env.retrieval.base import RetrievalError
from trainers.files import write_whole
from trainers.openrlhf.flags import Flags


def prepare(args: Any, flags: Flags) -> None:
    """Check a run against its flags, and write its prompt data unless it is only to be checked.

    Args:
        args: OpenRLHF's settings, nested, as its validators left them.
        flags: What was asked for.

    Raises:
        ValueError: If the run could not go well.
    """
    check_arguments(args, flags.rollout)
    check_folder(flags)
    tokenizer = load_tokenizer(args.actor.model_name_or_path)
    engine = flags.rollout.engine(tokenizer)
    held_out = load_questions(flags.rollout.eval_questions) if flags.rollout.eval_questions else []
    if len(engine.questions) < args.rollout.batch_size:
        raise ValueError(
            f"there are {len(engine.questions)} questions, fewer than a batch of rollouts asks "
            f"({args.rollout.batch_size}); give more, or lower --rollout.batch_size"
        )
    asked_in_all = min(args.data.max_samples, len(engine.questions)) * args.train.num_episodes
    args.ig.steps = asked_in_all // args.rollout.batch_size
    segments = SegmentTokenizer(tokenizer)
    check_prompts(engine, [*engine.questions, *held_out], segments, args.data.max_len)
    check_retriever(engine, flags.rollout)
    if flags.check:
        return
    asked = list(engine.questions)
    random.Random(args.train.seed).shuffle(asked)  # --data.max_samples takes the first ones
    write_whole(flags.train_data, prompt_data(asked, training=True))
    if held_out:
        write_whole(flags.eval_data, prompt_data(held_out, training=False))
    write_whole(flags.out / "config.json", json.dumps(_record(flags), indent=2) + "\n")


def check_arguments(args: Any, rollout: RolloutSettings) -> None:
    """Refuse what OpenRLHF does to rewards, which do not make the advantages here."""
    kl = args.algo.kl
    if kl.init_coef > 0 and not kl.use_loss:
        raise ValueError(
            f"--algo.kl.init_coef {kl.init_coef} without --algo.kl.use_loss puts the penalty in "
            "the reward, which the credit method does not see; add --algo.kl.use_loss, or set "
            "--algo.kl.init_coef 0"
        )
    for name in ("overlong_buffer_len", "stop_properly_penalty_coef"):
        if getattr(args.reward, name) is not None:
            raise ValueError(
                f"--reward.{name} changes the reward, which the credit method does not see; "
                "leave it out"
            )
    if rollout.scorer == "policy" and args.ds.tensor_parallel_size > 1:
        raise ValueError(
            "the policy cannot score answers with --ds.tensor_parallel_size above 1, got "
            f"{args.ds.tensor_parallel_size}; use ZeRO-3 alone, or set --ig.scorer vllm"
        )


def check_folder(flags: Flags) -> None:
    """Refuse to mix two runs in one folder."""
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
    old, new = json.loads(written.read_text(encoding="utf-8")), _record(flags)
    changed = [
        f"{section}.{key} was {old[section].get(key)!r}, got {new[section].get(key)!r}"
        for section in ("rollout", "credit")
        for key in sorted(old[section] | new[section])
        if old[section].get(key) != new[section].get(key)
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
        return AutoTokenizer.from_pretrained(path)
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
            "python -m scripts.serve_retriever"
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


def _record(flags: Flags) -> dict[str, Any]:
    return {
        "rollout": asdict(flags.rollout),
        "credit": flags.credit,
        "arguments": list(flags.arguments),
    }
