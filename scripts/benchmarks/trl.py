"""The local trainer against TRL's GRPOTrainer: tokens per second and peak memory.

python -m scripts.benchmarks.trl --out runs/bench_trl

Both train a model of random weights in the shipped policy's shape on the same prompts: 16 groups of
5 completions, each of exactly 48 tokens, sampled by the trainer's own sampler, one update a step in
passes of 16 completions, without a reference model. An environment is not part of it. The two take
turns, each time in a process of its own; figures are medians, seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from igsearch_env.cli.program import parse_early, run
from scripts.benchmarks.kit import benchmark_parser, measure_apart, peak_bytes, print_rows


def _parser() -> argparse.ArgumentParser:
    return benchmark_parser(__doc__)


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np
import torch

from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env import Question, World, make_credit
from igsearch_env.files import write_json
from igsearch_env.turn import TurnRules
from trainers.config import OptimizationSettings
from trainers.local.update import Updater
from trainers.memory import keep_freed_memory
from trainers.warm_start.tiny_policy import PROTOCOL, build_model, build_tokenizer

GROUPS, GROUP, LENGTH = 16, 5, 48
PART = 16  # completions of one forward and backward pass
RATE = 1e-4
REPEATS, STEPS = 3, 8
COLUMNS = {
    "trainer": ("trainer", "s"),
    "tokens_per_second": ("completion tokens per CPU second", ",.0f"),
    "peak_mib": ("peak MiB", ",.0f"),
}


def score(ids: Sequence[int]) -> float:
    """A reward that differs within every group: the share of even ids."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def run_local(steps: int) -> list[float]:
    """Train with our sampler, credit and update; CPU seconds of each step."""
    model, endless = make_model(), build_tokenizer()
    endless.eos_token = None  # no token ends a completion; TRL gets min_new_tokens
    tokenizer = SegmentTokenizer(endless)
    policy = TransformersPolicy(model, tokenizer, PROTOCOL, max_new_tokens=LENGTH)
    rules, credit = TurnRules(PROTOCOL), make_credit("outcome")
    config = OptimizationSettings(steps=steps, learning_rate=RATE, micro_batch_size=PART)
    updater = Updater(model, tokenizer, config)
    asked = questions(steps)
    seconds = []
    for step in range(steps):
        started = time.process_time()
        part = asked[step * GROUPS :][:GROUPS]
        begun = [rules.begin(question) for question in part for _ in range(GROUP)]
        finished = []
        for episode, turn in zip(begun, policy.act(begun), strict=True):
            check_length(turn.token_ids or ())
            played = rules.read(episode, turn).extend(episode, rules, None)
            outcome = score(turn.token_ids or ())
            finished.append(replace(played, outcome=outcome, truncated=True))
        updater.step(finished, credit(finished), np.random.default_rng(step))
        policy.memory.clear()
        seconds.append(time.process_time() - started)
    return seconds


def run_trl(steps: int) -> list[float]:
    """Train with TRL's own sampler and loss; CPU seconds of each step."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    class Timed(GRPOTrainer):  # type: ignore[misc]  # trl has no types
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            started.append(time.process_time())  # once for each part of a step
            return super().training_step(*args, **kwargs)

    def reward(completion_ids: Sequence[Sequence[int]], **others: Any) -> list[float]:
        for ids in completion_ids:
            check_length(ids)
        return [score(ids) for ids in completion_ids]

    started: list[float] = []
    asked = [PROTOCOL.render_prompt(question.text).text for question in questions(steps)]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=PART,
            gradient_accumulation_steps=GROUPS * GROUP // PART,
            num_generations=GROUP,
            max_completion_length=LENGTH,
            generation_kwargs={"min_new_tokens": LENGTH},
            learning_rate=RATE,
            shuffle_dataset=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        trainer = Timed(
            make_model(),
            reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": asked}),
            processing_class=build_tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    started = started[:: GROUPS * GROUP // PART]
    ends = [*started[1:], time.process_time()]
    return [end - start for start, end in zip(started, ends, strict=True)]


TRAINERS = {"local": run_local, "trl": run_trl}


def measure(case: tuple[str, int, int]) -> dict[str, Any]:
    """Run a trainer for some steps on some threads; its first step only warms up."""
    name, steps, threads = case
    torch.set_num_threads(threads)
    keep_freed_memory()
    seconds = TRAINERS[name](1 + steps)[1:]
    return {
        "trainer": name,
        "tokens_per_second": GROUPS * GROUP * LENGTH / median(seconds),
        "peak_mib": peak_bytes() / 2**20,
    }


def make_model() -> Any:
    """Random weights in the shipped policy's shape."""
    model = build_model(0)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model


def questions(steps: int) -> list[Question]:
    """What is asked, step after step."""
    return list(World.generate(0, people=40).train_questions[: steps * GROUPS])


def check_length(ids: Sequence[int]) -> None:
    """Both arms are to do the same work."""
    if len(ids) != LENGTH:
        raise ValueError(f"expected completions of {LENGTH} tokens, got {len(ids)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run both trainers in turn, print the table and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    cases = {
        f"{name} {repeat}": (name, STEPS, arguments.threads)
        for repeat in range(REPEATS)
        for name in TRAINERS
    }
    results = [result for _, result in measure_apart(cases, measure)]
    rows = [
        {"trainer": name}
        | {
            key: median(result[key] for result in results if result["trainer"] == name)
            for key in ("tokens_per_second", "peak_mib")
        }
        for name in TRAINERS
    ]
    write_json(arguments.out / "results.json", {"rows": rows, "threads": arguments.threads})
    print_rows(f"{GROUPS} groups of {GROUP} completions of {LENGTH} tokens", rows, COLUMNS)


if __name__ == "__main__":
    run(main)
