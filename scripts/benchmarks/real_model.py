"""What training did to a model on held-out questions: a table, a plot and results.json.

python -m scripts.benchmarks.real_model --out runs/report \
    --before runs/smollm2-warm-heldout \
    --runs runs/smollm2-0 runs/smollm2-1 runs/smollm2-2 \
    --after runs/smollm2-0-heldout runs/smollm2-1-heldout runs/smollm2-2-heldout

It reads what ``scripts.train`` and ``igsearch evaluate`` wrote. A run is compared with the policy
that it started from, question by question; over all runs, each question counts with its mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, parse_early, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> Parser:
    parser = benchmark_parser(__doc__)
    helps = {
        "--before": "evaluation of the policy that the runs start from",
        "--runs": "trainings, one a seed",
        "--after": "an evaluation of each, in the same order",
    }
    for name, text in helps.items():
        many = None if name == "--before" else "+"
        parser.add_argument(name, nargs=many, type=Path, required=True, metavar="DIR", help=text)
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import matplotlib
import numpy as np

from igsearch_env.answers import bootstrap_interval
from igsearch_env.evaluation.comparison import FinishedEvaluation, compare
from igsearch_env.files import write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MEASURES = {"em": "exact match", "gold_documents": "gold documents"}
HABITS = ("searches", "query_tokens", "invalid_turns", "cut_turns")
"""What else is kept of each step; without a search, it has no query tokens."""
COLUMNS = {
    "run": ("run", "s"),
    "questions": ("questions", "s"),
    "measure": ("measure", "s"),
    "n": ("n", "d"),
    "before": ("before", ".3f"),
    "after": ("after", ".3f"),
    "difference": ("difference", "+.3f"),
    "low": ("95 % from", "+.3f"),
    "high": ("to", "+.3f"),
}
COLORS = ("#1a73e8", "#e8710a", "#188038", "#a142f4", "#d93025")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the table, write results.json and curves.png.

    Args:
        argv: Command line arguments; None for those of the process.

    Raises:
        ValueError: If there is not one evaluation a run, or one of the folders is not finished.
    """
    arguments = _parser().parse_args(argv)
    if len(arguments.runs) != len(arguments.after):
        raise ValueError(
            f"--after needs one evaluation for each of the {len(arguments.runs)} runs, "
            f"got {len(arguments.after)}"
        )
    before = FinishedEvaluation(arguments.before)
    after = [FinishedEvaluation(folder) for folder in arguments.after]
    rows = pooled(before, after)
    for number, evaluation in enumerate(after):
        found = compare(before, evaluation)
        parts = [("all", name, found["micro"][name]) for name in MEASURES if name in found["micro"]]
        parts += [
            (row["dataset"], row["metric"], row)
            for row in found["rows"]
            if row["metric"] in MEASURES
        ]
        rows += [
            _row(str(number), dataset, name, row["n"], row["a"], row["b"], row["interval"])
            for dataset, name, row in parts
        ]
    logs = [_log(folder) for folder in arguments.runs]
    seconds = [
        {part: float(np.mean([row["seconds"][part] for row in log])) for part in log[0]["seconds"]}
        for log in logs
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = ("step", *MEASURES, "seconds")
    steps = [
        [{key: row[key] for key in kept} | {key: row.get(key) for key in HABITS} for row in log]
        for log in logs
    ]
    write_json(
        arguments.out / "results.json", {"rows": rows, "seconds_of_a_step": seconds, "steps": steps}
    )
    plot(logs, rows, arguments.out / "curves.png")
    print_rows("held-out questions, before and after training", rows, COLUMNS)
    names = [{"run": str(number), **part} for number, part in enumerate(seconds)]
    heads = {"run": ("run", "s"), **{part: (part, ".1f") for part in seconds[0]}}
    print_rows("seconds of a step", names, heads)


def pooled(before: FinishedEvaluation, after: Sequence[FinishedEvaluation]) -> list[dict[str, Any]]:
    """All runs together: each question with its mean over the runs.

    The interval resamples questions; how much training differs between seeds is not in it.
    """
    names = [name for name in before.scores if all(name in one.scores for one in after)]
    sets = {name: before.asked[name]["dataset"] for name in names}
    rows = []
    for dataset in ("all", *dict.fromkeys(sets.values())):
        for measure in MEASURES:
            pairs = np.array(
                [
                    (
                        before.scores[name][measure],
                        np.mean([one.scores[name][measure] for one in after]),
                    )
                    for name in names
                    if dataset in ("all", sets[name]) and measure in before.scores[name]
                ]
            )  # (questions, 2)
            if len(pairs):
                interval = bootstrap_interval(pairs[:, 1] - pairs[:, 0])
                one, other = pairs.mean(axis=0)
                rows.append(_row("mean", dataset, measure, len(pairs), one, other, interval))
    return rows


def _row(
    name: str,
    dataset: str,
    measure: str,
    count: int,
    before: float,
    after: float,
    interval: Sequence[float],
) -> dict[str, Any]:
    return {
        "run": name,
        "questions": dataset,
        "measure": measure,
        "n": count,
        "before": float(before),
        "after": float(after),
        "difference": float(after - before),
        "low": float(interval[0]),
        "high": float(interval[1]),
    }


def _log(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{folder} is no training run: it has no metrics.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def plot(
    logs: Sequence[Sequence[dict[str, Any]]], rows: Sequence[dict[str, Any]], path: Path
) -> None:
    """Training curves (means of five steps) above, held-out questions before and after below."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for axis, (key, title) in zip(axes[0], MEASURES.items(), strict=True):
        for number, log in enumerate(logs):
            values = np.array([row[key] for row in log])
            color = COLORS[number % len(COLORS)]
            width = min(5, len(values))
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            steps = np.arange(1, len(values) + 1)
            axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axis.plot(steps[width - 1 :], smooth, color=color, linewidth=2, label=f"run {number}")
        axis.set_title(f"{title}, training questions, sampled", fontsize=10, loc="left")
        axis.set_xlabel("step")
        axis.legend(frameon=False, fontsize=9)
    for axis, (key, title) in zip(axes[1], MEASURES.items(), strict=True):
        shown = [row for row in rows if row["run"] == "mean" and row["measure"] == key]
        places = np.arange(len(shown))
        after = [row["after"] for row in shown]
        error = [
            [row["difference"] - row["low"] for row in shown],
            [row["high"] - row["difference"] for row in shown],
        ]
        axis.bar(
            places - 0.2, [row["before"] for row in shown], 0.38, color="#bdc1c6", label="before"
        )
        axis.bar(
            places + 0.2, after, 0.38, yerr=error, color=COLORS[0], label="after, mean of the runs"
        )
        axis.set_xticks(
            places, [f"{row['questions']}\nn = {row['n']}" for row in shown], fontsize=8
        )
        axis.set_title(f"{title}, held-out; bars: 95 % of the difference", fontsize=10, loc="left")
        axis.set_ylim(0, axis.get_ylim()[1] * 1.2)  # room for the legend
        axis.legend(frameon=False, fontsize=9)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, axis="y")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
