"""Compare two evaluations of the same questions: paired differences, and the examples that flipped.

igsearch compare runs/before runs/after --out runs/comparison
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from igsearch_env.answers import bootstrap_interval, bootstrap_means, percentile_interval
from igsearch_env.cli.console import console, run
from igsearch_env.episode import Episode
from igsearch_env.evaluation.folder import read_episodes
from igsearch_env.evaluation.scores import METRICS, ExampleScore, question_scores, score_example
from igsearch_env.files import write_json

SHOWN = 10


class Run:
    """A finished evaluation: what each question scored, and what was answered.

    Args:
        folder: Its folder.

    Raises:
        ValueError: If it is not there, not finished, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "episodes.jsonl"
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no finished evaluation (no episodes.jsonl); run "
                f"igsearch evaluate --out {folder} --resume first"
            )
        scores: list[ExampleScore] = []
        self.asked: dict[str, dict[str, Any]] = {}
        for episode in read_episodes(file):
            scores.append(score_example(episode))
            one = self.asked.setdefault(episode.question.id, _asked(episode))
            one["answers"].append(episode.answer)
        self.scores = question_scores(scores)
        self.sha256 = _questions_sha256(folder / "manifest.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the tables and, if asked, write results.json."""
    arguments = _parser().parse_args(argv)
    before, after = Run(arguments.before), Run(arguments.after)
    results = compare(before, after)
    console.print(_table(results))
    for name, heading in (("gained", "right more often in B"), ("lost", "right more often in A")):
        _print_flips(results["flips"][name], heading, arguments.show)
    if arguments.out is not None:
        write_json(arguments.out / "results.json", results)
        console.print(f"{arguments.out / 'results.json'}", markup=False, soft_wrap=True)


def compare(before: Run, after: Run) -> dict[str, Any]:
    """Differences of B to A over the questions that both were asked and played without a failure.

    Returns:
        ``rows``, one per data set and metric, and ``micro`` and ``macro`` averages: means of both
        runs, their difference and its 95 % bootstrap interval over questions; ``flips``: the
        questions whose exact match rose (``gained``) or fell (``lost``); and how many questions
        are in one run only (``unpaired``).

    Raises:
        ValueError: If they share no question, or a question has another text or other answers.
    """
    for name in sorted(before.asked.keys() & after.asked.keys()):
        for part in ("question", "golden_answers", "dataset"):
            one, other = before.asked[name][part], after.asked[name][part]
            if one != other:
                raise ValueError(
                    f"question {name!r} differs between the runs: its {part} is {one!r} in "
                    f"{before.folder}, {other!r} in {after.folder}; compare runs of the same set"
                )
    paired = [name for name in before.scores if name in after.scores]
    if not paired:
        raise ValueError(f"{before.folder} and {after.folder} have no question in common")
    groups: dict[str, list[str]] = {}
    for name in paired:
        groups.setdefault(before.asked[name]["dataset"], []).append(name)
    rows = [
        {"dataset": dataset, "metric": metric, **_difference([pairs])}
        for dataset, names in groups.items()
        for metric in METRICS
        if (pairs := _pairs(before, after, metric, names))
    ]
    micro, macro = {}, {}
    for metric in METRICS:
        parts = [
            pairs for names in groups.values() if (pairs := _pairs(before, after, metric, names))
        ]
        if parts:
            micro[metric] = _difference([[pair for part in parts for pair in part]])
            macro[metric] = _difference(parts)
    changes = [(name, after.scores[name]["em"] - before.scores[name]["em"]) for name in paired]
    return {
        "a": str(before.folder),
        "b": str(after.folder),
        "same_questions": before.sha256 is not None and before.sha256 == after.sha256,
        "n": len(paired),
        "unpaired": len(before.asked.keys() | after.asked.keys()) - len(paired),
        "rows": rows,
        "micro": micro,
        "macro": macro,
        "flips": {
            "gained": [_flip(before, after, name) for name, change in changes if change > 0],
            "lost": [_flip(before, after, name) for name, change in changes if change < 0],
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="igsearch compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="A", help="folder of an evaluation")
    parser.add_argument("after", type=Path, metavar="B", help="folder of another one")
    parser.add_argument("--out", type=Path, help="folder for results.json, with every flip")
    parser.add_argument("--show", type=int, default=SHOWN, help="flips to print of either kind")
    return parser


def _asked(episode: Episode) -> dict[str, Any]:
    question = episode.question
    return {
        "question": question.text,
        "golden_answers": question.golden_answers,
        "dataset": question.dataset or "unnamed",
        "answers": [],
    }


def _questions_sha256(manifest: Path) -> str | None:
    if not manifest.is_file():
        return None
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))["inputs"]["questions_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest} is damaged ({type(error).__name__}: {error})") from error
    return str(found)


def _pairs(before: Run, after: Run, metric: str, names: Sequence[str]) -> list[tuple[float, float]]:
    """Values of both runs for the questions of which both know the metric."""
    rows = ((before.scores[name], after.scores[name]) for name in names)
    return [(one[metric], two[metric]) for one, two in rows if metric in one and metric in two]


def _difference(groups: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Mean of the groups' means; the interval resamples the pairs of each group apart."""
    pairs = [np.array(group) for group in groups]  # (questions, 2) each
    gaps = [group[:, 1] - group[:, 0] for group in pairs]
    if len(gaps) == 1:
        interval = bootstrap_interval(gaps[0])
    else:
        means = [bootstrap_means(gap, seed=place) for place, gap in enumerate(gaps)]
        interval = percentile_interval(np.mean(means, axis=0))
    one, other = np.mean([group.mean(axis=0) for group in pairs], axis=0)
    return {
        "n": sum(map(len, pairs)),
        "a": float(one),
        "b": float(other),
        "difference": float(np.mean([gap.mean() for gap in gaps])),
        "interval": list(interval),
    }


def _flip(before: Run, after: Run, name: str) -> dict[str, Any]:
    asked = before.asked[name]
    return {
        "id": name,
        "dataset": asked["dataset"],
        "question": asked["question"],
        "golden_answers": list(asked["golden_answers"]),
        "a": {"em": before.scores[name]["em"], "answers": asked["answers"]},
        "b": {"em": after.scores[name]["em"], "answers": after.asked[name]["answers"]},
    }


def _table(results: Mapping[str, Any]) -> Table:
    title = f"A = {results['a']}, B = {results['b']}: {results['n']:,} questions in both"
    if results["unpaired"]:
        title += f", {results['unpaired']:,} left out"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD)
    for name in ("data set", "metric", "n", "A", "B", "B - A [95 %]"):
        table.add_column(name, justify="left" if name in ("data set", "metric") else "right")
    rows = list(results["rows"])
    if len({row["dataset"] for row in rows}) > 1:
        rows += [
            {"dataset": "macro average", "metric": m, **d} for m, d in results["macro"].items()
        ]
        rows += [
            {"dataset": "micro average", "metric": m, **d} for m, d in results["micro"].items()
        ]
    for row in rows:
        low, high = row["interval"]
        change = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        values = (f"{row['n']:,}", f"{row['a']:.3f}", f"{row['b']:.3f}", change)
        table.add_row(escape(row["dataset"]), row["metric"], *values)
    return table


def _print_flips(flips: Sequence[Mapping[str, Any]], heading: str, most: int) -> None:
    console.print(f"\n{heading}: {len(flips):,}", highlight=False)
    for flip in flips[:most]:
        line = f"  {flip['id']}: {flip['question']} gold: {' | '.join(flip['golden_answers'][:3])}"
        answers = " -> ".join(
            " | ".join(answer or "(none)" for answer in flip[side]["answers"]) for side in "ab"
        )
        console.print(f"{line}; {answers}", markup=False, highlight=False, soft_wrap=True)
    if len(flips) > most:
        console.print(f"  and {len(flips) - most:,} more", highlight=False)


if __name__ == "__main__":
    run(main)
