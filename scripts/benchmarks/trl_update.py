"""The update of the local trainer beside that of TRL's GRPOTrainer, on the same real episodes.

python -m scripts.benchmarks.trl_update --out runs/bench_trl_update \
    --config trainers/configs/smollm2.toml

Episodes are played by a scripted agent that knows the gold titles: several turns, lengths as they
come, and what the environment wrote is not trained on. Both trainers get the same policy and
episodes, one advantage for each token, and train in the same precision. (Both sample with the
policy, so that there is nothing to compare.) Each case is a process of its own and trains twice;
the second update is measured: tokens of the episodes per CPU second, and the peak of memory. It
needs the extra ``trl`` and reads the peak from /proc, so it runs on Linux.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igsearch_env.cli.program import parse_early, positive, run, run_parser
from scripts.benchmarks.kit import GIB, UpdateMeter, measure_apart, print_rows, sampled


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--questions", type=positive, default=4, help="questions, G episodes each")
    parser.add_argument(
        "--rows", type=positive, nargs="+", default=[20, 5, 2], help="micro-batches of TRL's"
    )
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.episode import Episode
from igsearch_env.files import write_json
from igsearch_env.rollout import collect
from trainers.config import TrainSettings, load_config

if TYPE_CHECKING:
    from agents.grpo_agent import GRPOAgent
    from igsearch_env.engine import SearchQAEngine

COLUMNS = {
    "case": ("trainer", "s"),
    "tokens_per_second": ("tokens per CPU s", ",.0f"),
    "ratio": ("to the local one", ".2f"),
    "peak_gib": ("peak GiB", ".2f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases, print the table and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    from trainers.setup import with_precision  # loads torch

    arguments = _parser().parse_args(argv)
    config = with_precision(load_config(arguments.config, arguments.set))
    size = arguments.questions * config.optimization.group_size
    if wrong := [rows for rows in arguments.rows if size % rows]:
        raise ValueError(f"--rows must divide the {size} episodes of a step, got {wrong[0]}")
    cases: dict[str, tuple[TrainSettings, int, int]] = {"local": (config, arguments.questions, 0)}
    for rows in arguments.rows:
        cases[f"TRL, {rows} at a time"] = (config, arguments.questions, rows)
    rows = [{"case": name, **found} for name, found in measure_apart(cases, measure)]
    for row in rows:
        row["ratio"] = row["tokens_per_second"] / rows[0]["tokens_per_second"]
    write_json(arguments.out / "results.json", {"config": config.to_dict(), "rows": rows})
    print_rows("update on the same episodes", rows, COLUMNS)


def measure(case: tuple[TrainSettings, int, int]) -> dict[str, Any]:
    """Measure one case.

    Args:
        case: The settings of a run, the number of questions, and TRL's micro-batch in episodes; 0
            for the local trainer.

    Returns:
        ``tokens_per_second`` and ``peak_gib`` of the second update, and the ``tokens`` of its
        episodes.
    """
    from igsearch_env.threads import set_threads
    from trainers.local.token_batch import episode_tokens
    from trainers.setup import make_agent, make_training_engine, with_protocol
    from trainers.warm_start.real_questions import GoldAgent

    config, questions, rows = case
    set_threads(config.run.threads)
    engine = make_training_engine(config, config.run.seed)
    agent = make_agent(config, engine)
    engine = with_protocol(engine, agent.policy.protocol)
    engine = replace(engine, questions=engine.questions[:questions])
    size = config.optimization.group_size
    asked = [question for question in engine.questions for _ in range(size)]
    player = GoldAgent(agent.policy, engine.rules.max_searches, random.Random(0))
    episodes = [sampled(episode) for episode in agent.settle(collect(engine, player, asked))]
    agent.policy.memory.clear()
    tokens = sum(len(episode_tokens(one, agent.policy.tokenizer)[0]) for one in episodes)
    meter = (
        _with_trl(config, engine, agent, episodes, rows)
        if rows
        else _local(config, agent, episodes)
    )
    return {
        "tokens_per_second": tokens / meter.seconds,
        "peak_gib": meter.peak / GIB,
        "tokens": tokens,
    }


def _local(config: TrainSettings, agent: GRPOAgent, episodes: Sequence[Episode]) -> UpdateMeter:
    from trainers.local.update import Updater

    policy, o = agent.policy, config.optimization
    temperature = config.policy.temperature
    updater = Updater(policy.model, policy.tokenizer, o, temperature, autocast=policy.autocast)
    rng = np.random.default_rng(0)
    # Tokens without an advantage need not be run, and TRL runs them all: here each token has one.
    advantages = [rng.normal(size=episode.policy_tokens) for episode in episodes]
    updater.step(episodes, advantages, rng)
    meter = UpdateMeter(policy.model, updater.optimizer)
    updater.step(episodes, advantages, rng)
    meter.stop()
    return meter


def _with_trl(
    config: TrainSettings,
    engine: SearchQAEngine,
    agent: GRPOAgent,
    episodes: Sequence[Episode],
    rows: int,
) -> UpdateMeter:
    from transformers import TrainerCallback
    from trl import GRPOConfig

    from trainers.trl.rollouts import (
        SearchRollouts,
        TokenCreditTrainer,
        completion,
        prompts,
        reward,
    )

    by_question: defaultdict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_question[episode.question.id].append(episode)
    meters: list[UpdateMeter] = []

    class Played(SearchRollouts):
        """Hands out the episodes that were played before."""

        def __call__(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
            left = {name: iter(group) for name, group in by_question.items()}
            self.episodes = [next(left[name]) for name in prompts]
            tokenizer = self.agent.policy.tokenizer
            found = [completion(episode, tokenizer) for episode in self.episodes]
            if trainer.state.global_step:
                meters.append(UpdateMeter(trainer.model, trainer.optimizer))
            return {key: [row[key] for row in found] for key in found[0]}

    class Ends(TrainerCallback):
        """Stops the clock at the end of the second step."""

        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            for meter in meters:
                meter.stop()

    o, policy = config.optimization, agent.policy
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder,
            max_steps=2,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=len(episodes) // rows,
            num_generations=o.group_size,
            temperature=policy.temperature,
            learning_rate=o.learning_rate,
            max_grad_norm=o.max_grad_norm,
            epsilon=o.clip,
            bf16=config.policy.precision == "bfloat16-autocast",
            gradient_checkpointing=o.gradient_checkpointing,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        TokenCreditTrainer(
            policy.model,
            reward,
            args=settings,
            train_dataset=prompts(engine.questions),
            processing_class=policy.tokenizer.tokenizer,
            rollout_func=Played(engine, agent),
            callbacks=[Ends()],
        ).train()
    (meter,) = meters
    return meter


if __name__ == "__main__":
    run(main)
