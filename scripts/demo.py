"""The demo: IG-Search and GRPO from the same weak policy, on the same questions, side by side.

python -m scripts.demo --out runs/demo
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import (
    on_interrupt,
    parse_early,
    positive,
    quiet_transformers,
    run,
    run_parser,
)


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--eval-questions", type=positive, default=600, help="held-out questions")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

from rich.table import Table

from igsearch_env.cli.console import console, make_table, print_table, progress_bar
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Document, Question
from igsearch_env.evaluation.play import play_questions
from igsearch_env.evaluation.scores import evaluation_results
from igsearch_env.files import write_json
from igsearch_env.threads import set_threads
from trainers.config import TrainSettings, load_config
from trainers.local.run_log import read_log

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIG = CHECKOUT / "trainers" / "configs" / "demo.toml"
ARMS: Mapping[str, Sequence[str]] = {
    "ig_search": (),
    "grpo": ("--set", 'credit={method = "outcome"}'),
}
EVAL_SEED = 77
PARTS = ("rollout", "retrieval", "information_gain", "update")  # of a step's time


def main(argv: Sequence[str] | None = None) -> None:
    """Train both arms in parallel, evaluate them, and write the table, the file and the plot.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    started = time.perf_counter()
    config = load_config(CONFIG, arguments.set)
    _check_folder(arguments)
    _train(arguments)
    with console.status("loading torch"):  # not above: --help and typos need not wait for it
        from scripts.demo_plots import plot_curves
        from trainers.setup import make_questions, make_training_engine

        quiet_transformers()
    trained = time.perf_counter()
    set_threads(1)
    engine = make_training_engine(config, seed=EVAL_SEED)
    questions = make_questions(config.environment.eval_questions, config.world)
    questions = questions[: arguments.eval_questions]
    rows = {"start": _evaluate(config.policy.path, config, engine, questions)}
    for arm in ARMS:
        rows[arm] = _evaluate(str(arguments.out / arm / "policy"), config, engine, questions)
    logs = {arm: read_log(arguments.out / arm / "metrics.jsonl") for arm in ARMS}
    for arm, log in logs.items():
        rows[arm] |= _training_summary(log)
    results = {
        "questions": len(questions),
        "steps": config.optimization.steps,
        "rollouts_per_arm": config.optimization.steps
        * config.optimization.questions_per_step
        * config.optimization.group_size,
        "arms": rows,
        "seconds": {
            "training": round(trained - started, 1),
            "evaluation": round(time.perf_counter() - trained, 1),
        },
    }
    write_json(arguments.out / "results.json", results)
    plot_curves(logs, arguments.out / "curves.png")
    print_table(_table(results))
    console.print(f"{arguments.out / 'results.json'}, curves.png, */view.html")


def _check_folder(arguments: argparse.Namespace) -> None:
    """Refuse a folder that holds arms, unless they are to be resumed; say so if they are."""
    from trainers.local.checkpoint import checkpoints

    held = [arm for arm in ARMS if (arguments.out / arm / "config.json").exists()]
    if held and not arguments.resume:
        raise ValueError(
            f"{arguments.out} holds a demo already; pass --resume to go on with it, or remove it"
        )
    for arm in held:
        saved = checkpoints(arguments.out / arm / "checkpoints")
        after = f"after {saved[-1].name}" if saved else "from the start: no checkpoint was reached"
        console.print(f"going on with {arm} in {arguments.out}, {after}")


def _train(arguments: argparse.Namespace) -> None:
    """Train each arm in a process of its own, resuming what an earlier call left unfinished."""
    processes = {}
    for arm, settings in ARMS.items():
        folder = arguments.out / arm
        command = [sys.executable, "-m", "scripts.train", "--out", str(folder), "--resume"]
        command += ["--config", str(CONFIG), *settings]
        command += [part for override in arguments.set for part in ("--set", override)]
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / "train.log").open("w", encoding="utf-8")
        # In groups of their own: Ctrl-C reaches them from here, once, so that each can write its
        # checkpoint in peace.
        apart: dict[str, Any] = {} if os.name == "nt" else {"process_group": 0}
        processes[arm] = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=log, **apart)
    steps = load_config(CONFIG, arguments.set).optimization.steps
    try:
        with (
            on_interrupt("--resume goes on after the last whole step of each arm"),
            progress_bar() as bar,
        ):
            tasks = {arm: bar.add_task(f"train {arm}", total=steps, note="") for arm in ARMS}
            while any(process.poll() is None for process in processes.values()):
                for arm, task in tasks.items():
                    rows = read_log(arguments.out / arm / "metrics.jsonl")
                    note = f"em {rows[-1]['em']:.3f}" if rows else ""
                    bar.update(task, completed=len(rows), note=note)
                time.sleep(0.5)
    finally:
        _end(processes.values())
    for arm, process in processes.items():
        if process.wait() != 0:
            tail = (arguments.out / arm / "train.log").read_text(encoding="utf-8")[-2000:]
            raise ValueError(f"training {arm} ended with status {process.returncode}:\n{tail}")


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes that still run as Ctrl-C does, and wait for what they write then."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        if os.name == "nt":
            process.terminate()
        else:
            process.send_signal(signal.SIGINT)
    for process in running:
        process.wait()


def _evaluate(
    path: str, config: TrainSettings, engine: SearchQAEngine, questions: Sequence[Question]
) -> dict[str, Any]:
    """Sampled and greedy results on held-out questions; gains under the policy's own weights."""
    from trainers.setup import make_policy

    policy = make_policy(replace(config.policy, path=path), config.environment.protocol)
    row: dict[str, Any] = {}
    for mode in ("sampled", "greedy"):
        with progress_bar() as bar:
            name = f"evaluate {Path(path).parent.name}, {mode}"
            task = bar.add_task(name, total=len(questions), note="")
            episodes = play_questions(
                engine,
                policy,
                questions,
                seed=EVAL_SEED,
                greedy=mode == "greedy",
                scorer=policy.scorer(),
                progress=partial(bar.advance, task),
            )
        row[mode] = evaluation_results(episodes)
    silent = replace(engine, retriever=NoDocuments())
    by_heart = play_questions(silent, policy, questions, seed=EVAL_SEED)
    row["closed_book"] = evaluation_results(by_heart)
    return row


class NoDocuments:
    """A retriever that finds nothing, to see what a policy knows by heart."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """One empty list per query."""
        return [[] for _ in queries]


def _training_summary(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds by part, and the share of groups without a single success."""
    seconds = {part: sum(row["seconds"].get(part, 0.0) for row in log) for part in PARTS}
    all_fail = [row["all_fail"] for row in log]
    return {
        "seconds": {part: round(value, 1) for part, value in seconds.items()},
        "all_fail": sum(all_fail) / len(all_fail),
    }


def _table(results: dict[str, Any]) -> Table:
    arms = results["arms"].values()
    figures = {
        "EM, sampled": ("sampled", "em"),
        "EM, greedy": ("greedy", "em"),
        "EM, every search empty": ("closed_book", "em"),
        "gold documents retrieved": ("sampled", "gold_documents"),
        "information gain (nats)": ("sampled", "information_gain"),
        "searches": ("sampled", "searches"),
    }
    rows = [
        [label, *(_cell(row[mode], key) for row in arms)] for label, (mode, key) in figures.items()
    ]
    rows.append(["all-fail groups, training", *(_number(row.get("all_fail")) for row in arms)])
    for part in PARTS:
        values = [row.get("seconds", {}).get(part) for row in arms]
        rows.append([f"seconds: {part.replace('_', ' ')}", *(_number(v, 1) for v in values)])
    title = (
        f"{results['questions']} held-out questions after {results['steps']} steps, "
        f"{results['rollouts_per_arm']} rollouts per arm"
    )
    return make_table(title, ["", *results["arms"]], rows)


def _cell(summary: Mapping[str, Any], key: str) -> str:
    low, high = summary[f"{key}_interval"]
    return f"{summary[key]:.3f} ± {(high - low) / 2:.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    run(main)
