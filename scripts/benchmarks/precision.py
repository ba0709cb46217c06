"""Float32 against bfloat16 arithmetic in a training step, and what its memory goes into.

python -m scripts.benchmarks.precision --out runs/bench_precision \
    --config trainers/configs/smollm2.toml

Episodes are played by a scripted agent that knows the gold titles, so that every case has the same
ones. Each case is a process of its own: tokens per CPU second of sampling a first turn, of settling
information gain and of the update, and the peak of resident memory beside that of the plan.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from igsearch_env.cli.console import console
from igsearch_env.cli.program import positive, run, run_parser
from igsearch_env.evaluation.settings import Precision
from igsearch_env.files import write_json
from trainers.config import TrainSettings, load_config

GIB = 1 << 30
CASES: dict[str, tuple[Precision, bool, bool]] = {
    "float32": ("float32", False, True),
    "bfloat16": ("bfloat16-autocast", False, True),
    "bfloat16, checkpointed": ("bfloat16-autocast", True, True),
    "bfloat16, logits whole": ("bfloat16-autocast", False, False),
}
"""Precision, gradient checkpointing, and whether logits are computed in parts."""


def main() -> None:
    """Run the cases one after another and write what was measured."""
    arguments = _parser().parse_args()
    config = load_config(arguments.config, arguments.set)
    rows: list[dict[str, Any]] = []
    for name, (precision, checkpointed, parts) in CASES.items():
        case = replace(
            config,
            policy=replace(config.policy, precision=precision),
            optimization=replace(config.optimization, gradient_checkpointing=checkpointed),
        )
        # A peak is that of a whole process: each case has its own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (case, arguments.episodes, parts))
        rows.append({"case": name, **found})
        write_json(arguments.out / "results.json", rows)
    console.print(_table(rows))


def measure(config: TrainSettings, episodes: int, logits_in_parts: bool) -> dict[str, float]:
    """Measure one case; the peak of memory is that of this process.

    Args:
        config: The settings of a run.
        episodes: Episodes of the update.
        logits_in_parts: Whether logits are computed in parts, as they are unless it is said here.

    Returns:
        Tokens per CPU second of ``sampling``, ``scoring`` and ``update``, ``sampling_gap`` in nats,
        and ``peak_gib`` beside ``planned_gib``, both without what the process held before the
        model was loaded.
    """
    from igsearch_env.rollout import collect
    from trainers.local import token_batch
    from trainers.local.update import Updater
    from trainers.plan import plan
    from trainers.setup import make_agent, make_training_engine
    from trainers.warm_start.real_questions import GoldAgent

    if not logits_in_parts:
        token_batch.LOGITS_AT_ONCE = 1 << 40
    planned = plan(config).phases["update"]
    engine = make_training_engine(config, config.run.seed)
    before = _peak()
    agent = make_agent(config, engine)
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
    started = time.process_time()
    for _ in range(2):  # the second has optimizer states beside its activations
        updater.step(played, noise, rng)
    found["update"] = 2 * sum(lengths) / (time.process_time() - started)
    return {
        **found,
        "peak_gib": (_peak() - before) / GIB,
        "planned_gib": sum(planned.values()) / GIB,
    }


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="tokens per CPU second; GiB beside the process itself")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.2f}" for v in row.values()))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--episodes", type=positive, default=12)
    return parser


if __name__ == "__main__":
    run(main)
