"""Two evaluations of the same questions, compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from igsearch_env.answers import bootstrap_interval, bootstrap_means, percentile_interval
from igsearch_env.episode import Episode
from igsearch_env.evaluation.folder import read_episodes
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.evaluation.scores import ExampleScore, question_scores, score_example
from igsearch_env.text import read_json


class FinishedEvaluation:
    """What each question of an evaluation scored, and what was answered.

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
        inputs = _inputs(folder / "manifest.json")
        self.sha256, self.scorer = inputs.get("questions_sha256"), inputs.get("scorer")


def compare(before: FinishedEvaluation, after: FinishedEvaluation) -> dict[str, Any]:
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
    parts_too = (name for run in (before, after) for row in run.scores.values() for name in row)
    metrics = [
        name for name in dict.fromkeys([*METRICS, *parts_too]) if not name.startswith("pass_at_")
    ]
    rows = [
        {"dataset": dataset, "metric": metric, **_difference([pairs])}
        for dataset, names in groups.items()
        for metric in metrics
        if (pairs := _pairs(before, after, metric, names))
    ]
    micro, macro = {}, {}
    for metric in metrics:
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
        "scorers": [before.scorer, after.scorer],
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


def _asked(episode: Episode) -> dict[str, Any]:
    question = episode.question
    return {
        "question": question.text,
        "golden_answers": question.golden_answers,
        "dataset": question.dataset or "unnamed",
        "answers": [],
    }


def _inputs(manifest: Path) -> dict[str, Any]:
    """What the results depend on besides the settings; empty where there is no manifest."""
    if not manifest.is_file():
        return {}
    try:
        return dict(read_json(manifest.read_text(encoding="utf-8"))["inputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest} is damaged ({type(error).__name__}: {error})") from error


def _pairs(
    before: FinishedEvaluation, after: FinishedEvaluation, metric: str, names: Sequence[str]
) -> list[tuple[float, float]]:
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


def _flip(before: FinishedEvaluation, after: FinishedEvaluation, name: str) -> dict[str, Any]:
    asked = before.asked[name]
    return {
        "id": name,
        "dataset": asked["dataset"],
        "question": asked["question"],
        "golden_answers": list(asked["golden_answers"]),
        "a": {"em": before.scores[name]["em"], "answers": asked["answers"]},
        "b": {"em": after.scores[name]["em"], "answers": after.asked[name]["answers"]},
    }
