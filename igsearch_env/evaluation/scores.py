"""Scores of single examples, and what they add up to: per data set, micro and macro averages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from igsearch_env.answers import (
    bootstrap_interval,
    bootstrap_means,
    pass_at_k,
    percentile_interval,
)
from igsearch_env.episode import Episode
from igsearch_env.evaluation.metrics import METRICS, episode_metrics


@dataclass(frozen=True, slots=True)
class ExampleScore:
    """The scores of one episode.

    Args:
        question_id: The question.
        dataset: Its data set; ``"unnamed"`` if it has none.
        failed: Whether a search failed; such an episode is left out of every average.
        yes_no: Whether every gold answer is yes or no, which a guess gets right half of the time.
        values: Each known metric of :data:`igsearch_env.evaluation.metrics.METRICS` by name, and
            each part of the outcome.
    """

    question_id: str
    dataset: str
    failed: bool
    yes_no: bool
    values: Mapping[str, float]


def score_example(episode: Episode) -> ExampleScore:
    """Score a finished episode."""
    question = episode.question
    golds = {answer.lower().strip() for answer in question.golden_answers}
    return ExampleScore(
        question_id=question.id,
        dataset=question.dataset or "unnamed",
        failed=episode.retrieval_failed,
        yes_no=golds <= {"yes", "no"},
        values=episode_metrics(episode),
    )


def question_scores(scores: Sequence[ExampleScore]) -> dict[str, dict[str, float]]:
    """For each question, the mean of each metric over its samples, and ``pass_at_k``.

    A metric that is unknown of every sample is left out, and so is a question all of whose
    samples failed. ``pass_at_k`` is there for k = 1, 2, 4, ... and the number of samples, if that
    is above 1.
    """
    samples: dict[str, list[ExampleScore]] = defaultdict(list)
    for score in scores:
        if not score.failed:
            samples[score.question_id].append(score)
    return {question: _question(group) for question, group in samples.items()}


def summary(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """Means over questions, each with its 95 % bootstrap interval over questions.

    Returns:
        ``n`` questions, ``failed`` episodes that were left out, and ``NAME`` and
        ``NAME_interval`` of every metric that is known; ``yes_no`` where there are such questions,
        and ``calibration_error`` where the policy states its confidence.
    """
    per_question = question_scores(scores)
    found: dict[str, Any] = {
        "n": len(per_question),
        "failed": sum(score.failed for score in scores),
    }
    for name, values in _columns(per_question).items():
        found[name] = float(np.mean(values))
        found[f"{name}_interval"] = list(bootstrap_interval(values))
    stated = [row for row in per_question.values() if "confidence" in row]
    if stated:
        found["calibration_error"] = calibration_error(
            [row["confidence"] for row in stated], [row["em"] for row in stated]
        )
    yes_no = _columns(question_scores([score for score in scores if score.yes_no]))
    if yes_no:
        kept = {name: yes_no[name] for name in ("em", "information_gain") if name in yes_no}
        means = {name: float(np.mean(values)) for name, values in kept.items()}
        found["yes_no"] = {"n": len(yes_no["em"]), **means}
    return found


def calibration_error(
    confidences: Sequence[float], right: Sequence[float], bins: int = 10
) -> float:
    """Expected calibration error: how far confidence is from the share of right answers.

    Confidences fall into ``bins`` of equal width, the upper end of each included. The error is the
    mean over questions of the absolute difference, within the question's bin, of mean confidence
    and share right (Guo et al. 2017, arXiv 1706.04599, equation 3).

    >>> round(calibration_error([0.9, 0.9, 0.2], [1.0, 0.0, 0.0]), 4)
    0.3333
    """
    sure, hit = np.asarray(confidences), np.asarray(right)
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    totals = np.zeros(bins)
    np.add.at(totals, places, sure - hit)
    return float(np.abs(totals).sum() / len(sure))


def macro_average(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """The mean of the data sets' means, in which a small set counts as much as a large one.

    Its interval resamples the questions of each data set apart. Where only some of the data sets
    know a metric, ``NAME_datasets`` says how many.

    Returns:
        The number of ``datasets`` with a question that counts, and ``NAME`` and ``NAME_interval``.
    """
    groups = [_columns(question_scores(group)) for group in by_dataset(scores).values()]
    groups = [group for group in groups if group]
    found: dict[str, Any] = {"datasets": len(groups)}
    for name in dict.fromkeys(name for group in groups for name in group):
        known = [(place, group[name]) for place, group in enumerate(groups) if name in group]
        means = [bootstrap_means(values, seed=place) for place, values in known]
        found[name] = float(np.mean([np.mean(values) for _, values in known]))
        found[f"{name}_interval"] = list(percentile_interval(np.mean(means, axis=0)))
        if len(known) < len(groups):
            found[f"{name}_datasets"] = len(known)
    return found


def all_averages(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """``micro`` average (over all questions), ``macro`` average, and each of the ``datasets``."""
    datasets = {name: summary(group) for name, group in by_dataset(scores).items()}
    return {"micro": summary(scores), "macro": macro_average(scores), "datasets": datasets}


def evaluation_results(episodes: Sequence[Episode]) -> dict[str, Any]:
    """The averages that training logs keep of an evaluation.

    Returns:
        :func:`summary` of all episodes, and that of each data set under ``datasets``. Episodes in
        which a search failed are left out and counted in ``failed``.
    """
    scores = [score_example(episode) for episode in episodes]
    groups = sorted(by_dataset(scores).items())
    return {**summary(scores), "datasets": {name: summary(group) for name, group in groups}}


def by_dataset(scores: Sequence[ExampleScore]) -> dict[str, list[ExampleScore]]:
    """The scores of each data set, in the order of the scores."""
    groups: dict[str, list[ExampleScore]] = {}
    for score in scores:
        groups.setdefault(score.dataset, []).append(score)
    return groups


def known_names(scores: Sequence[ExampleScore]) -> list[str]:
    """The metrics, and then the parts of the outcome that some score has."""
    return list(dict.fromkeys([*METRICS, *(name for score in scores for name in score.values)]))


def _question(samples: Sequence[ExampleScore]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in known_names(samples):
        values = [one.values[name] for one in samples if name in one.values]
        if values:
            row[name] = float(np.mean(values))
    if len(samples) > 1:
        right = round(sum(one.values["em"] for one in samples))
        powers = [2**power for power in range(len(samples).bit_length())]
        for k in sorted({k for k in (*powers, len(samples)) if k <= len(samples)}):
            row[f"pass_at_{k}"] = pass_at_k(len(samples), right, k)
    return row


def _columns(per_question: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = defaultdict(list)
    for row in per_question.values():
        for name, value in row.items():
            columns[name].append(value)
    return columns
