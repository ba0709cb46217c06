"""What precision, adapters, checkpointing, small optimizers and logits in parts do to a step.

python -m scripts.benchmarks.precision --out runs/bench_precision \
    --config trainers/configs/smollm2.toml

Episodes are played by a scripted agent that knows the gold titles, so that every case has the same
ones; in the last cases it thinks at length before each turn. Each case is a process of its own:
tokens per CPU second of sampling a first turn, of settling information gain and of the update, and
the update's peak of memory beside that of the plan. It reads the peak from /proc, so it runs on
Linux.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from math import ceil
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

from igsearch_env.completion import Completion
from igsearch_env.episode import Episode
from igsearch_env.files import write_json
from igsearch_env.protocol.tags import thought_marks
from igsearch_env.rollout import collect
from trainers.config import LOGITS_AT_ONCE, TrainSettings, load_config

if TYPE_CHECKING:
    from agents.transformers_policy import TransformersPolicy
    from trainers.warm_start.real_questions import GoldAgent

AUTOCAST, ROUNDED = "policy.precision=bfloat16-autocast", "policy.precision=bfloat16"
CHECKPOINTED = "optimization.gradient_checkpointing=true"
AT_ONCE = "optimization.logits_at_once"
LORA = (ROUNDED, "policy.lora.rank=16")
LONG_TURNS = "LoRA, checkpointed, long turns"
THOUGHT = 150  # words of a long turn
CASES: dict[str, tuple[str, ...]] = {
    "float32": ("policy.precision=float32",),
    "autocast": (AUTOCAST,),
    "autocast, all at a time": (
        AUTOCAST,
        "optimization.micro_batch_size=1000",
        "optimization.micro_batch_tokens=0",
    ),
    "autocast, checkpointed": (AUTOCAST, CHECKPOINTED),
    "autocast, 8-bit AdamW": (AUTOCAST, "optimization.optimizer=adamw8bit"),
    "bfloat16 weights": (ROUNDED,),
    "LoRA": LORA,
    "LoRA, checkpointed": (*LORA, CHECKPOINTED),
    LONG_TURNS: (*LORA, CHECKPOINTED),
    f"{LONG_TURNS}, logits whole": (*LORA, CHECKPOINTED, f"{AT_ONCE}={1 << 40}"),
    f"{LONG_TURNS}, logits in eighths": (*LORA, CHECKPOINTED, f"{AT_ONCE}={LOGITS_AT_ONCE // 8}"),
}
"""Settings of each case; in the last ones the policy thinks at length, so that it wrote most tokens
of an episode itself."""


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
            load_config(arguments.config, [*arguments.set, *words]),
            arguments.episodes,
            THOUGHT if name.startswith(LONG_TURNS) else 0,
        )
        for name, words in CASES.items()
    }
    rows = [{"case": name, **found} for name, found in measure_apart(cases, measure)]
    write_json(arguments.out / "results.json", rows)
    print_rows("tokens per CPU second, memory in GiB", rows, COLUMNS)


def measure(case: tuple[TrainSettings, int, int]) -> dict[str, float]:
    """Measure one case.

    Args:
        case: The settings of a run, the number of episodes, and the words of a thought before each
            turn.

    Returns:
        Tokens per CPU second of ``sampling``, ``scoring`` and ``update``, and ``peak_gib`` of the
        update beside ``planned_gib``.
    """
    from trainers.memory import keep_freed_memory
    from trainers.setup import make_agent, make_training_engine, with_protocol
    from trainers.warm_start.real_questions import GoldAgent

    config, count, thought = case
    keep_freed_memory()
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
    player = GoldAgent(policy, engine.rules.max_searches, random.Random(0))
    played = collect(engine, ThinkingAgent(player, thought) if thought else player, asked)
    started = time.process_time()
    agent.settle(played)
    scoring = agent.scorer.tokens_processed / (time.process_time() - started)
    return {"sampling": sampling, "scoring": scoring, **measure_update(config, policy, played)}


class ThinkingAgent:
    """Puts a thought before each turn of another agent: words of the question, over and over.

    Args:
        agent: The other agent.
        length: Words of a thought.
    """

    def __init__(self, agent: GoldAgent, length: int) -> None:
        self.agent, self.length = agent, length

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write the next turn of each episode."""
        tokenizer = self.agent.tokenizer
        opening, closing = thought_marks("think")
        turns = []
        for episode, turn in zip(episodes, self.agent.act(episodes), strict=True):
            words = islice(cycle(episode.question.text.split()), self.length)
            text = f"{opening} {' '.join(words)} {closing}\n{turn}"
            ids = tokenizer.encode_answer("", text)[1]
            turns.append(Completion.from_tokens(ids, None, tokenizer.decode))
        return turns


def measure_update(
    config: TrainSettings, policy: TransformersPolicy, played: Sequence[Episode]
) -> dict[str, float]:
    """Tokens per CPU second of a second update, and its peak of memory beside the plan.

    The first has an episode only.
    """
    from trainers.local.token_batch import episode_tokens, micro_batches
    from trainers.local.update import Updater
    from trainers.memory import large_blocks_given_back
    from trainers.plan import plan

    episodes = [sampled(episode) for episode in played]
    rows = [episode_tokens(episode, policy.tokenizer) for episode in episodes]
    lengths = [len(ids) for ids, _ in rows]
    o, temperature = config.optimization, config.policy.temperature
    parts = micro_batches(lengths, sys.maxsize, o.micro_batch_size)
    written = max(ceil(sum(sum(rows[i][1]) for i in part) / len(part)) for part in parts)
    # As many episodes as there are, each as long as the longest of them.
    small = replace(config, optimization=replace(o, questions_per_step=len(rows), group_size=1))
    planned = plan(small, longest=max(lengths), written=written).phases["update"]
    updater = Updater(policy.model, policy.tokenizer, o, temperature, autocast=policy.autocast)
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=episode.policy_tokens) for episode in episodes]
    with large_blocks_given_back():  # as in training
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
