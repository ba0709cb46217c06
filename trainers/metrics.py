"""What a batch of episodes tells, as plain numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from igsearch_env.episode import Document, Episode, Question
from igsearch_env.metrics import bootstrap_interval, cover_exact_match


def gold_document_rate(episode: Episode) -> float | None:
    """Share of the question's gold passages that its searches found; None if they are unknown."""
    found = [document for step in episode.searches for document in step.documents]
    return gold_share(episode.question, found)


def gold_share(question: Question, documents: Sequence[Document]) -> float | None:
    """Share of a question's gold passages that are among some; None if they are unknown.

    >>> question = Question("q", "?", ("Lima",), supporting_titles=("Lima", "Peru"))
    >>> gold_share(question, [Document("1", "Peru", "..."), Document("2", "Rome", "...")])
    0.5
    """
    if question.supporting_ids:
        gold, seen = set(question.supporting_ids), {document.id for document in documents}
    else:
        gold, seen = set(question.supporting_titles), {document.title for document in documents}
    return len(gold & seen) / len(gold) if gold else None


def mean_gain(episode: Episode) -> float | None:
    """Mean information gain of an episode's settled searches, in nats; None if there are none."""
    gains = [gain for gain in episode.information_gains if gain is not None]
    return sum(gains) / len(gains) if gains else None


def rollout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over a batch of rollouts; a number that nothing is known of is left out.

    Groups count as ``all_fail`` or ``all_success`` if every rollout's outcome is the same, 0 or
    above. Rollouts in which a search failed are left out of everything but ``failed_searches``,
    the share of searches that failed.
    """
    failures = [float(step.retrieval_failed) for e in episodes for step in e.searches]
    episodes = _unbroken(episodes)
    groups: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        groups[episode.group_id].append(episode.outcome or 0.0)
    steps = [step for episode in episodes for step in episode.steps]
    gains = [g for e in episodes for g in e.information_gains if g is not None]
    rates = [rate for e in episodes if (rate := gold_document_rate(e)) is not None]
    searches = [step for step in steps if step.action == "search"]
    lengths = [s.query_tokens.stop - s.query_tokens.start for s in searches]
    values: dict[str, list[float]] = {
        "outcome": [episode.outcome or 0.0 for episode in episodes],
        "em": [episode.em or 0.0 for episode in episodes],
        "f1": [episode.f1 or 0.0 for episode in episodes],
        "searches": [float(len(episode.searches)) for episode in episodes],
        "gold_documents": rates,
        "invalid_turns": [float(not step.valid) for step in steps],
        "query_tokens": [float(length) for length in lengths],
        "failed_searches": failures,
        "all_fail": [float(max(group) <= 0) for group in groups.values()],
        "all_success": [float(0 < min(group) == max(group)) for group in groups.values()],
        "information_gain": gains,
        "information_gain_positive": [float(gain > 0) for gain in gains],
        "log_prob": [s.log_prob for s in searches if s.log_prob is not None],
        "baseline_log_prob": [b for s in searches for b in s.baseline_log_probs or ()],
    }
    return {name: float(np.mean(column)) for name, column in values.items() if column}


def evaluation_results(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Metrics per example, averaged over all and per data set, with 95 % bootstrap intervals.

    Returns:
        ``n``, ``em``, ``f1``, ``cover_em`` and ``searches`` with ``*_interval`` each (and
        ``gold_documents`` and ``information_gain`` where known), and the same per data set under
        ``datasets``. Episodes in which a search failed are left out and counted in ``failed``.
    """
    by_dataset: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_dataset[episode.question.dataset or "unnamed"].append(episode)
    per_dataset = {name: _summary(group) for name, group in sorted(by_dataset.items())}
    return {**_summary(episodes), "datasets": per_dataset}


def _unbroken(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if not episode.retrieval_failed]


def _summary(played: Sequence[Episode]) -> dict[str, Any]:
    episodes = _unbroken(played)
    columns: dict[str, list[float]] = {
        "em": [e.em or 0.0 for e in episodes],
        "f1": [e.f1 or 0.0 for e in episodes],
        "cover_em": [cover_exact_match(e.answer, e.question.golden_answers) for e in episodes],
        "searches": [float(len(e.searches)) for e in episodes],
        "gold_documents": [r for e in episodes if (r := gold_document_rate(e)) is not None],
        "information_gain": [gain for e in episodes if (gain := mean_gain(e)) is not None],
    }
    summary: dict[str, Any] = {"n": len(episodes), "failed": len(played) - len(episodes)}
    for name, values in columns.items():
        if values:
            summary[name] = float(np.mean(values))
            summary[f"{name}_interval"] = list(bootstrap_interval(values))
    golds = [{a.lower().strip() for a in e.question.golden_answers} for e in episodes]
    yes_no = [e for e, gold in zip(episodes, golds, strict=True) if gold <= {"yes", "no"}]
    if yes_no:
        summary["yes_no"] = {"n": len(yes_no), "em": float(np.mean([e.em or 0.0 for e in yes_no]))}
        gains = [gain for e in yes_no if (gain := mean_gain(e)) is not None]
        if gains:
            summary["yes_no"]["information_gain"] = float(np.mean(gains))
    return summary
