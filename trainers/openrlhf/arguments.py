"""What OpenRLHF's own validators let pass and this project, or the run later on, does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainers.openrlhf.flags import Flags


def check_engines(args: Any) -> None:
    """Check that there are vLLM engines, before OpenRLHF compares their number.

    Raises:
        ValueError: If there are none.
    """
    if not args.vllm.num_engines:
        raise ValueError(
            f"episodes are played by vLLM engines, got --vllm.num_engines {args.vllm.num_engines}; "
            "give at least 1"
        )


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
