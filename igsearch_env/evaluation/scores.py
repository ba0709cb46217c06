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
    cover_exact_match,
    pass_at_k,
    percentile_interval,
)
from igsearch_env.episode import Document, Episode, Question

METRICS = ("em", "f1", "cover_em", "searches", "tokens", "gold_documents", "information_gain")


@dataclass(frozen=True, slots=True)
class ExampleScore:
    """What is counted of one episode.

    Args:
        question_id: The question.
        dataset: Its data set; ``"unnamed"`` if it has none.
        failed: Whether a search failed; such an episode is left out of every average.
        yes_no: Whether every gold answer is yes or no, which a guess gets right half of the time.
        em: Exact match, 0 or 1.
        f1: Token F1.
        cover_em: Whether the answer holds a gold answer, 0 or 1.
        searches: Number of searches.
        tokens: Number of tokens that the policy wrote; None if only its text is known.
        gold_documents: Share of the gold passages that the searches found (retrieval recall); None
            if they are unknown.
        information_gain: Mean gain of the settled searches, in nats; None if there are none.
    """

    question_id: str
    dataset: str
    failed: bool
    yes_no: bool
    em: float
    f1: float
    cover_em: float
    searches: float
    tokens: float | None
    gold_documents: float | None
    information_gain: float | None


def score_example(episode: Episode) -> ExampleScore:
    """Score a finished episode."""
    question = episode.question
    golds = {answer.lower().strip() for answer in question.golden_answers}
    known = all(step.turn.token_ids is not None for step in episode.steps)
    return ExampleScore(
        question_id=question.id,
        dataset=question.dataset or "unnamed",
        failed=episode.retrieval_failed,
        yes_no=golds <= {"yes", "no"},
        em=episode.em or 0.0,
        f1=episode.f1 or 0.0,
        cover_em=cover_exact_match(episode.answer, question.golden_answers),
        searches=float(len(episode.searches)),
        tokens=float(episode.policy_tokens) if known else None,
        gold_documents=gold_document_rate(episode),
        information_gain=mean_gain(episode),
    )


def gold_document_rate(episode: Episode) -> float | None:
    """Share of the question's gold passages that its searches found; None if they are unknown."""
    found = [document for step in episode.searches for document in step.documents]
    return gold_share(episode.question, found)


def gold_share(question: Question, documents: Sequence[Document]) -> float | None:
    """Share of a question's gold passages that are among some; None if they are unknown.

    >>> question = Question("q", "?", ("Lima",), gold_titles=("Lima", "Peru"))
    >>> gold_share(question, [Document("1", "Peru", "..."), Document("2", "Rome", "...")])
    0.5
    """
    if question.gold_ids:
        gold, seen = set(question.gold_ids), {document.id for document in documents}
    else:
        gold, seen = set(question.gold_titles), {document.title for document in documents}
    return len(gold & seen) / len(gold) if gold else None


def mean_gain(episode: Episode) -> float | None:
    """Mean information gain of an episode's settled searches, in nats; None if there are none."""
    gains = [gain for gain in episode.information_gains if gain is not None]
    return sum(gains) / len(gains) if gains else None


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
        ``NAME_interval`` of every metric that is known; ``yes_no`` where there are such questions.
    """
    per_question = question_scores(scores)
    found: dict[str, Any] = {
        "n": len(per_question),
        "failed": sum(score.failed for score in scores),
    }
    for name, values in _columns(per_question).items():
        found[name] = float(np.mean(values))
        found[f"{name}_interval"] = list(bootstrap_interval(values))
    yes_no = _columns(question_scores([score for score in scores if score.yes_no]))
    if yes_no:
        kept = {name: yes_no[name] for name in ("em", "information_gain") if name in yes_no}
        means = {name: float(np.mean(values)) for name, values in kept.items()}
        found["yes_no"] = {"n": len(yes_no["em"]), **means}
    return found


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


def report(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """``micro`` average (over all questions), ``macro`` average, and each of the ``datasets``."""
    datasets = {name: summary(group) for name, group in by_dataset(scores).items()}
    return {"micro": summary(scores), "macro": macro_average(scores), "datasets": datasets}


def by_dataset(scores: Sequence[ExampleScore]) -> dict[str, list[ExampleScore]]:
    """The scores of each data set, in the order of the scores."""
    groups: dict[str, list[ExampleScore]] = {}
    for score in scores:
        groups.setdefault(score.dataset, []).append(score)
    return groups


def _question(samples: Sequence[ExampleScore]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in METRICS:
        values = [value for one in samples if (value := getattr(one, name)) is not None]
        if values:
            row[name] = float(np.mean(values))
    if len(samples) > 1:
        right = round(sum(one.em for one in samples))
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
