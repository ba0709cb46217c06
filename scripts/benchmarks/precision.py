"""What precision, adapters, checkpointing and small optimizers do to a training step.

python -m scripts.benchmarks.precision --out runs/bench_precision \
    --config trainers/configs/smollm2.toml

Episodes are played by a scripted agent that knows the gold titles, so that every case has the same
ones. Each case is a process of its own: tokens per CPU second of sampling a first turn, of settling
information gain and of the update, and the update's peak of memory beside that of the plan. It
reads the peak from /proc, so it runs on Linux.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from igsearch_env.cli.program import parse_early, positive, run, run_parser
from scripts.benchmarks.kit import GIB, UpdateMeter, measure_apart, print_rows, sampled


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--episodes", type=positive, default=12)
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.episode import Episode
from igsearch_env.files import write_json
from igsearch_env.rollout import collect
from trainers.config import TrainSettings, load_config

if TYPE_CHECKING:
    from agents.transformers_policy import TransformersPolicy

AUTOCAST, ROUNDED = "policy.precision=bfloat16-autocast", "policy.precision=bfloat16"
CHECKPOINTED = "optimization.gradient_checkpointing=true"
LORA = (ROUNDED, "policy.lora.rank=16")
CASES: dict[str, tuple[str, ...]] = {
    "float32": ("policy.precision=float32",),
    "autocast": (AUTOCAST,),
    "autocast, checkpointed": (AUTOCAST, CHECKPOINTED),
    "autocast, 8-bit AdamW": (AUTOCAST, "optimization.optimizer=adamw8bit"),
    "bfloat16 weights": (ROUNDED,),
    "LoRA": LORA,
    "LoRA, checkpointed": (*LORA, CHECKPOINTED),
}
"""Settings of each case."""


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
        name: (load_config(arguments.config, [*arguments.set, *words]), arguments.episodes)
        for name, words in CASES.items()
    }
    rows = [{"case": name, **found} for name, found in measure_apart(cases, measure)]
    write_json(arguments.out / "results.json", rows)
    print_rows("tokens per CPU second, memory in GiB", rows, COLUMNS)


def measure(case: tuple[TrainSettings, int]) -> dict[str, float]:
    """Measure one case.

    Args:
        case: The settings of a run, and the number of episodes of the update.

    Returns:
        Tokens per CPU second of ``sampling``, ``scoring`` and ``update``, and ``peak_gib`` of the
        update beside ``planned_gib``.
    """
    from trainers.setup import make_agent, make_training_engine, with_protocol
    from trainers.warm_start.real_questions import GoldAgent

    config, count = case
    engine = make_training_engine(config, config.run.seed)
    agent = make_agent(config, engine)
    policy = agent.policy
    engine = with_protocol(engine, policy.protocol)
    asked = [engine.questions[i % len(engine.questions)] for i in range(count)]
    begun = [engine.rules.begin(question, question.id) for question in asked]
    started = time.process_time()
    turns = policy.act(begun)
    tokens = sum(len(turn.token_ids or ()) for turn in turns)
    sampling = tokens / (time.process_time() - started)
    policy.memory.clear()
    played = collect(engine, GoldAgent(policy, engine.rules.max_searches, random.Random(0)), asked)
    started = time.process_time()
    agent.settle(played)
    scoring = agent.scorer.tokens_processed / (time.process_time() - started)
    return {"sampling": sampling, "scoring": scoring, **measure_update(config, policy, played)}


def measure_update(
    config: TrainSettings, policy: TransformersPolicy, played: Sequence[Episode]
) -> dict[str, float]:
    """Tokens per CPU second of a second update, and its peak of memory beside the plan.

    The first has an episode only.
    """
    from trainers.local.token_batch import episode_tokens
    from trainers.local.update import Updater
    from trainers.plan import plan

    episodes = [sampled(episode) for episode in played]
    lengths = [len(episode_tokens(episode, policy.tokenizer)[0]) for episode in episodes]
    # A micro-batch of as many episodes as there are at most, as long as the longest of them.
    fewer = min(config.optimization.micro_batch_size, len(episodes))
    small = replace(config, optimization=replace(config.optimization, micro_batch_size=fewer))
    planned = plan(small, longest=max(lengths)).phases["update"]
    o, temperature = config.optimization, config.policy.temperature
    updater = Updater(policy.model, policy.tokenizer, o, temperature, autocast=policy.autocast)
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=episode.policy_tokens) for episode in episodes]
    updater.step(episodes[:1], noise[:1], rng)
    meter = UpdateMeter(policy.model, updater.optimizer)
    updater.step(episodes, noise, rng)
    meter.stop()
    return {
        "update": sum(lengths) / meter.seconds,
        "peak_gib": meter.peak / GIB,
        "planned_gib": sum(planned.values()) / GIB,
    }


if __name__ == "__main__":
    run(main)
