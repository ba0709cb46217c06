"""Rebuild the shipped policy: train a fresh one on demonstrations of mixed query quality.

python -m scripts.warm_start --out runs/warm_start
python -m scripts.warm_start --out runs/reader --random-facts --steps 3200
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from agents.transformers_policy import TransformersPolicy
from igsearch_env.checkpoint_settings import TrainedIn
from igsearch_env.cli.console import console, progress_bar, run
from igsearch_env.evaluation.play import play_questions
from igsearch_env.files import write_json
from igsearch_env.threads import set_threads
from trainers.local.metrics import evaluation_results
from trainers.warm_start.tiny_policy import PROTOCOL
from trainers.warm_start.training import WarmStart, WarmStartSettings, evaluation_engine


def main() -> None:
    """Train, save and evaluate."""
    arguments = _parser().parse_args()
    if arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}")
    config = WarmStartSettings(
        steps=arguments.steps,
        seed=arguments.seed,
        informative_bridges=not arguments.random_facts,
    )
    if arguments.smoke:
        config = replace(config, steps=3, spoiling_steps=2, people=60, episodes_per_world=64)
    policy_folder, checkpoint = arguments.out / "policy", arguments.out / "warm_start.pt"
    if policy_folder.exists():
        raise ValueError(f"{policy_folder} exists already; choose another folder or remove it")
    if checkpoint.exists() and not arguments.resume:
        raise ValueError(
            f"{checkpoint} is that of a run which was cut short; pass --resume to go on with it, "
            "or remove it"
        )
    set_threads(arguments.threads)
    started = time.perf_counter()
    with progress_bar() as bar:
        total = config.steps + config.spoiling_steps
        task = bar.add_task("warm start", total=total, note="")
        warm_start = WarmStart(config)
        warm_start.run(
            lambda n, loss: bar.update(task, completed=n, note=f"loss {loss:.3f}"), checkpoint
        )
    policy = TransformersPolicy(
        warm_start.model,
        warm_start.tokenizer,
        PROTOCOL,
        max_new_tokens=16,
        trained_in=TrainedIn(1, config.max_searches, "documents"),
    )
    policy.save_pretrained(policy_folder)
    checkpoint.unlink(missing_ok=True)
    results: dict[str, object] = {"seconds": round(time.perf_counter() - started, 1)}
    for book in ("open_book", "closed_book"):
        engine, questions = evaluation_engine(config, closed_book=book == "closed_book")
        questions = questions[: 20 if arguments.smoke else 500]
        for greedy in (False, True):
            episodes = play_questions(engine, policy, questions, seed=0, greedy=greedy)
            found = evaluation_results(episodes)
            name = f"{book}_{'greedy' if greedy else 'sampled'}"
            results[name] = found
            console.print(f"{name}: EM {found['em']:.3f} of {len(questions)} questions")
    write_json(arguments.out / "results.json", results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for policy and results.json"
    )
    parser.add_argument("--steps", type=int, default=WarmStartSettings.steps, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--random-facts", action="store_true", help="in worlds whose names hint at nothing"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on where a run was cut short")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it works")
    return parser


if __name__ == "__main__":
    run(main)
