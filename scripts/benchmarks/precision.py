"""What precision, adapters, checkpointing and small optimizers do to a training step.

python -m scripts.benchmarks.precision --out runs/bench_precision \
    --config trainers/configs/smollm2.toml

Episodes are played by a scripted agent that knows the gold titles, so that every case has the same
ones. Each case is a process of its own: tokens per CPU second of sampling a first turn, of settling
information gain and of the update, and the peak of resident memory beside that of the plan.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from igsearch_env.cli.program import parse_early, positive, run, run_parser
from scripts.benchmarks.kit import make_table, measure_apart, peak_bytes


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--episodes", type=positive, default=12)
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.cli.console import print_table
from igsearch_env.files import write_json
from trainers.config import TrainSettings, load_config

GIB = 1 << 30
AUTOCAST, ROUNDED = "policy.precision=bfloat16-autocast", "policy.precision=bfloat16"
CHECKPOINTED = "optimization.gradient_checkpointing=true"
LORA = (ROUNDED, "policy.lora.rank=16")
CASES: dict[str, tuple[str, ...]] = {
    "float32": ("policy.precision=float32",),
    "autocast": (AUTOCAST,),
    "autocast, checkpointed": (AUTOCAST, CHECKPOINTED),
    "autocast, logits whole": (AUTOCAST,),
    "autocast, 8-bit AdamW": (AUTOCAST, "optimization.optimizer=adamw8bit"),
    "bfloat16 weights": (ROUNDED,),
    "LoRA": LORA,
    "LoRA, checkpointed": (*LORA, CHECKPOINTED),
}
"""Settings of each case; where logits are "whole" they are not computed in parts."""


COLUMNS = {"case": ("case", "s")} | {
    name: (name.replace("_", " "), ".2f")
    for name in ("sampling", "scoring", "update", "peak_gib", "planned_gib")
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases, print the table and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    cases = {
        name: (
            load_config(arguments.config, [*arguments.set, *CASES[name]]),
            arguments.episodes,
            not name.endswith("whole"),
        )
        for name in CASES
    }
    rows = [{"case": name, **found} for name, found in measure_apart(cases, measure)]
    write_json(arguments.out / "results.json", rows)
    print_table(make_table("tokens per CPU second, memory in GiB", rows, COLUMNS))


def measure(case: tuple[TrainSettings, int, bool]) -> dict[str, float]:
    """Measure one case; the peak of memory is that of this process.

    Args:
        case: The settings of a run, the number of episodes of the update, and whether logits are
            computed in parts, as they are in training.

    Returns:
        Tokens per CPU second of ``sampling``, ``scoring`` and ``update``, and ``peak_gib`` beside
        ``planned_gib``, both without what the process held before the model was loaded.
    """
    from igsearch_env.rollout import collect
    from trainers.local import token_batch
    from trainers.local.update import Updater
    from trainers.plan import plan
    from trainers.setup import make_agent, make_training_engine, with_protocol
    from trainers.warm_start.real_questions import GoldAgent

    config, episodes, logits_in_parts = case
    if not logits_in_parts:
        token_batch.LOGITS_AT_ONCE = 1 << 40
    engine = make_training_engine(config, config.run.seed)
    before = peak_bytes()
    agent = make_agent(config, engine)
    engine = with_protocol(engine, agent.policy.protocol)
    policy = agent.policy
    asked = [engine.questions[i % len(engine.questions)] for i in range(episodes)]
    begun = [engine.rules.begin(question, question.id) for question in asked]
    found: dict[str, float] = {}
    started = time.process_time()
    turns = policy.act(begun)
    tokens = sum(len(turn.token_ids or ()) for turn in turns)
    found["sampling"] = tokens / (time.process_time() - started)
    policy.memory.clear()
    gold = GoldAgent(policy, engine.rules.max_searches, random.Random(0))
    played = [
        replace(
            episode,
            steps=tuple(
                replace(step, log_probs=(-1.0,) * len(step.turn.token_ids or ()))
                for step in episode.steps
            ),
        )
        for episode in collect(engine, gold, asked)
    ]
    started = time.process_time()
    agent.settle(played)
    found["scoring"] = agent.scorer.tokens_processed / (time.process_time() - started)
    updater = Updater(
        policy.model,
        policy.tokenizer,
        config.optimization,
        config.policy.temperature,
        autocast=policy.autocast,
    )
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=episode.policy_tokens) for episode in played]
    lengths = [len(token_batch.episode_tokens(e, policy.tokenizer)[0]) for e in played]
    # A micro-batch of as many episodes as there are at most, as long as the longest of them.
    fewer = min(config.optimization.micro_batch_size, episodes)
    small = replace(config, optimization=replace(config.optimization, micro_batch_size=fewer))
    planned = plan(small, longest=max(lengths)).phases["update"]
    started = time.process_time()
    for _ in range(2):  # the second has optimizer states beside its activations
        updater.step(played, noise, rng)
    found["update"] = 2 * sum(lengths) / (time.process_time() - started)
    return {
        **found,
        "peak_gib": (peak_bytes() - before) / GIB,
        "planned_gib": sum(planned.values()) / GIB,
    }


if __name__ == "__main__":
    run(main)
