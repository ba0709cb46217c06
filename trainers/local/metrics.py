"""What a batch of episodes tells, as plain numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from igsearch_env.episode import Episode
from igsearch_env.evaluation.scores import by_dataset, gold_document_rate, score_example, summary


def rollout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over a batch of rollouts; a number that nothing is known of is left out.

    Groups count as ``all_fail`` or ``all_success`` if every rollout's outcome is the same, 0 or
    above. Rollouts in which a search failed are left out of everything but ``failed_searches``,
    the share of searches that failed. Gains and the log-probs behind them are those of the searches
    that the credit method looks at; the others are not scored.
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
    means = {name: float(np.mean(column)) for name, column in values.items() if column}
    correlation = gain_gold_correlation(episodes)
    return means if correlation is None else means | {"gain_gold_correlation": correlation}


def gain_gold_correlation(episodes: Sequence[Episode]) -> float | None:
    """Correlation of a search's information gain with whether it found a new gold passage.

    Pearson's, over the settled searches of questions whose ``gold_ids`` are known; None
    where either is constant.
    """
    pairs: list[tuple[float, float]] = []
    for episode in episodes:
        missing = set(episode.question.gold_ids)
        for step in episode.searches:
            found = missing & {document.id for document in step.documents}
            missing -= found
            if step.information_gain is not None and episode.question.gold_ids:
                pairs.append((step.information_gain, float(bool(found))))
    if len(pairs) < 2 or np.ptp(np.array(pairs), axis=0).min() == 0:
        return None
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


def evaluation_results(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Metrics per example, averaged over all and per data set, with 95 % bootstrap intervals.

    Returns:
        :func:`igsearch_env.evaluation.scores.summary` of all episodes, and that of each data set
        under ``datasets``. Episodes in which a search failed are left out and counted in
        ``failed``.
    """
    scores = [score_example(episode) for episode in episodes]
    groups = sorted(by_dataset(scores).items())
    return {**summary(scores), "datasets": {name: summary(group) for name, group in groups}}


def _unbroken(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if not episode.retrieval_failed]
