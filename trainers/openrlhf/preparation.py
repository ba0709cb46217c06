"""What is checked and written before Ray is started."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from agents.loading import load_tokenizer
from agents.tokenization import SegmentTokenizer
from igsearch_env.data.questions import load_questions
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.files import write_json, write_whole
from igsearch_env.retrieval.base import check_alive
from igsearch_env.text import read_json, without_logins
from trainers.openrlhf.flags import Flags
from trainers.rollout_settings import RolloutSettings, make_label


def prepare(args: Any, flags: Flags) -> RolloutSettings:
    """Check a run against its flags, and write its prompt data unless it is only to be checked.

    Args:
        args: OpenRLHF's settings, nested, as its validators left them.
        flags: What was asked for.

    Returns:
        How episodes are played, the grammar as it was when the run began.

    Raises:
        ValueError: If the run could not go well.
    """
    check_arguments(args, flags)
    record: dict[str, Any] = {
        "rollout": asdict(flags.rollout),
        "credit": flags.credit,
        "data": {
            "train.seed": args.train.seed,
            "data.max_samples": args.data.max_samples,
            "rollout.batch_size": args.rollout.batch_size,
        },
        "arguments": list(flags.arguments),
    }
    record = without_logins(record)
    check_folder(flags, record)
    if not args.actor.model_name_or_path:
        raise ValueError("there is no policy; give --actor.model_name_or_path")
    segments = load_tokenizer(args.actor.model_name_or_path)
    tokenizer = segments.tokenizer
    engine = flags.rollout.engine(tokenizer)
    held_out = load_questions(flags.rollout.eval_questions) if flags.rollout.eval_questions else []
    asked = whole_batches(engine.questions, args)
    args.ig.steps = len(asked) * args.train.num_episodes // args.rollout.batch_size
    check_prompts(engine, [*engine.questions, *held_out], segments, args.data.max_len)
    check_alive(engine.retriever, engine.questions[0].text, engine.top_k)
    if flags.check:
        return flags.rollout
    data = prompt_data(asked, training=True)
    if flags.resume and data != flags.train_data.read_text(encoding="utf-8"):
        raise ValueError(
            f"the questions have changed since the run in {flags.out} began: its place in them "
            f"would be lost; restore {flags.rollout.questions}, or choose another folder"
        )
    write_whole(flags.train_data, data)
    if held_out:
        write_whole(flags.eval_data, prompt_data(held_out, training=False))
    write_json(flags.out / "config.json", record)
    return flags.rollout.frozen(tokenizer, flags.out / "protocol.json")


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
    sections = ("rollout", "credit", "data")
    try:
        old = {section: {**read_json(written.read_text("utf-8"))[section]} for section in sections}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{written} is damaged ({error!r}); put it back, or begin again in another folder"
        ) from error
    changed = [
        f"{section}: {key} was {old[section].get(key)!r}, got {record[section].get(key)!r}"
        for section in sections
        for key in sorted(old[section] | record[section])
        if old[section].get(key) != record[section].get(key)
    ]
    if flags.resume and changed:
        raise ValueError(
            f"the run in {flags.out} has other settings ({'; '.join(changed)}); resume it with its "
            "own (config.json), or choose another folder"
        )


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


def check_arguments(args: Any, flags: Flags) -> None:
    """Check settings of OpenRLHF against this project and each other.

    Args:
        args: OpenRLHF's settings, nested, as its validators left them.
        flags: What was asked for.

    Raises:
        ValueError: With the first that does not fit, and what to do.
    """
    for refusal in (*_rewards(args), *_processes(args, flags), *_evaluation(args, flags)):
        raise ValueError(refusal)


def _rewards(args: Any) -> Iterator[str]:
    """What OpenRLHF does to rewards, which do not make the advantages here."""
    kl = args.algo.kl
    if kl.init_coef > 0 and not kl.use_loss:
        yield (
            f"--algo.kl.init_coef {kl.init_coef} without --algo.kl.use_loss puts the penalty in "
            "the reward, which the credit method does not see; add --algo.kl.use_loss, or set "
            "--algo.kl.init_coef 0"
        )
    for name in ("overlong_buffer_len", "stop_properly_penalty_coef"):
        if getattr(args.reward, name) is not None:
            yield (
                f"--reward.{name} changes the reward, which the credit method does not see; "
                "leave it out"
            )
    if args.algo.dynamic_filtering_enable:
        yield (
            "--algo.dynamic_filtering_enable drops the groups whose rollouts all have the same "
            "outcome, in which the credit of searches still teaches, and can leave a batch that is "
            "not whole; leave it out"
        )
    if args.critic.freezing_steps >= 0:
        yield (
            f"--critic.freezing_steps {args.critic.freezing_steps} holds the policy for the sake "
            "of a critic, and there is none; leave it out"
        )


def _processes(args: Any, flags: Flags) -> Iterator[str]:
    """What the policy's processes and the engines could not share out, load or score."""
    shared = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    gpus = args.actor.num_nodes * args.actor.num_gpus_per_node
    ranks = gpus // shared
    engines = args.vllm.num_engines * args.vllm.tensor_parallel_size
    if args.train.colocate_all and not args.train.async_enable and engines != gpus:
        yield (
            f"with --train.colocate_all the engines take as many GPUs as the policy, got {engines} "
            f"(--vllm.num_engines times --vllm.tensor_parallel_size) and {gpus}; set "
            f"--vllm.num_engines {gpus // args.vllm.tensor_parallel_size}"
        )
    rollouts = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    for name, total, micro in (
        ("rollout.batch_size times --rollout.n_samples_per_prompt", rollouts, "rollout"),
        ("train.batch_size", args.train.batch_size, "train"),
    ):
        size = getattr(args, micro).micro_batch_size
        if not args.train.dynamic_batch_enable and total % (size * ranks):
            yield (
                f"--{name} must be a multiple of {size * ranks}, which is "
                f"--{micro}.micro_batch_size {size} for each of {ranks} processes, got {total}"
            )
    if rollouts % args.train.batch_size:
        yield (
            f"--train.batch_size must divide {rollouts}, the rollouts of a step "
            "(--rollout.batch_size times --rollout.n_samples_per_prompt), got "
            f"{args.train.batch_size}"
        )
    if args.data.disable_fast_tokenizer:
        yield (
            "--data.disable_fast_tokenizer leaves no character offsets, by which answers are "
            "found; leave it out"
        )
    if flags.rollout.scorer == "policy" and args.ds.tensor_parallel_size > 1:
        yield (
            "the policy cannot score answers with --ds.tensor_parallel_size above 1, got "
            f"{args.ds.tensor_parallel_size}; use ZeRO-3 alone, or set --ig.scorer vllm"
        )


def _evaluation(args: Any, flags: Flags) -> Iterator[str]:
    if flags.rollout.eval_questions and args.eval.steps < 1:
        yield (
            "--ig.eval_questions are asked every --eval.steps steps, which is not set; give "
            "--eval.steps"
        )
