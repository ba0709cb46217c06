"""The table of metrics, which evaluations, training logs and the viewer read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from igsearch_env.answers import cover_exact_match
from igsearch_env.credit.query_bonus import query_length
from igsearch_env.episode import Episode
from igsearch_env.outcome import gold_share


@dataclass(frozen=True)
class Metric:
    """A number that is reported of episodes.

    Give either ``values`` or ``batch``. ``values`` returns numbers of one episode: one for the
    whole of it, one for each turn or each search, or none where nothing is known. An evaluation
    takes their mean within each episode, then over the samples of a question, then over questions.
    A training log takes the mean of all numbers of a batch. A metric with ``batch`` is a number of
    several rollouts together, and only training logs have it.

    Args:
        name: Key in results.json and metrics.jsonl.
        label: What it is, in a few words; the viewer shows it.
        values: Numbers of an episode in which no search failed.
        batch: A number of a batch of rollouts, among them those in which a search failed; None
            where it is not known.
        heading: Its column in the table of an evaluation; empty for none.
        digits: Digits after the point where it is shown.
        interval: Whether that column shows the 95 % interval, which results.json always has.

    Raises:
        ValueError: If not exactly one of ``values`` and ``batch`` is given.
    """

    name: str
    label: str
    values: Callable[[Episode], Sequence[float]] | None = None
    batch: Callable[[Sequence[Episode]], float | None] | None = None
    heading: str = ""
    digits: int = 3
    interval: bool = False

    def __post_init__(self) -> None:
        if (self.values is None) == (self.batch is None):
            raise ValueError(
                f"metric {self.name!r} must have either values or batch; values is "
                f"{self.values!r}, batch {self.batch!r}"
            )


def unbroken(episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes in which no search failed."""
    return [episode for episode in episodes if not episode.retrieval_failed]


def gold_document_rate(episode: Episode) -> float | None:
    """Share of the question's gold documents that its searches found; None if they are unknown."""
    found = [document for step in episode.searches for document in step.documents]
    return gold_share(episode.question, found)


def gain_gold_correlation(episodes: Sequence[Episode]) -> float | None:
    """Correlation of a search's information gain with whether it found a new gold document.

    Pearson's, over the settled searches of questions whose ``gold_ids`` are known; None where
    either is constant.
    """
    pairs: list[tuple[float, float]] = []
    for episode in unbroken(episodes):
        missing = set(episode.question.gold_ids)
        for step in episode.searches:
            found = missing & {document.id for document in step.documents}
            missing -= found
            if step.information_gain is not None and episode.question.gold_ids:
                pairs.append((step.information_gain, float(bool(found))))
    if len(pairs) < 2 or np.ptp(np.array(pairs), axis=0).min() == 0:
        return None
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _gains(episode: Episode) -> list[float]:
    return [gain for gain in episode.information_gains if gain is not None]


def _query_tokens(episode: Episode) -> list[float]:
    """Number of tokens of each query; none if only the policy's text is known."""
    return [float(query_length(step)) for step in episode.searches] if _has_ids(episode) else []


def _tokens(episode: Episode) -> list[float]:
    """Number of tokens that the policy wrote; none if only its text is known."""
    return [float(episode.policy_tokens)] if _has_ids(episode) else []


def _has_ids(episode: Episode) -> bool:
    return all(step.turn.token_ids is not None for step in episode.steps)


def _cut_turns(episode: Episode) -> list[float]:
    """1.0 for a turn that a limit ended, else 0.0; nothing where nobody knows why it ended."""
    reasons = [s.stop_reason for s in episode.steps if s.stop_reason not in (None, "refused")]
    return [float(reason in ("length", "no_room")) for reason in reasons]


_CONFIDENCE = re.compile(r"\bconfidence\b[^\w.<>]{0,6}(\d{1,3}(?:\.\d+)?)\s*(%?)", re.IGNORECASE)


def confidence(episode: Episode) -> float | None:
    """How sure the policy says it is in the turn of its answer, from 0 to 1; None if it does not.

    It is the last ``Confidence: 85%`` or ``confidence: 0.85`` of the turn.
    """
    if episode.answer is None or not episode.steps:
        return None
    found = _CONFIDENCE.findall(episode.steps[-1].turn.text)
    if not found:
        return None
    number, percent = found[-1]
    value = float(number) / (100 if percent or float(number) > 1 else 1)
    return value if value <= 1 else None


def _brier(episode: Episode) -> list[float]:
    sure = confidence(episode)
    return [] if sure is None or episode.em is None else [(sure - episode.em) ** 2]


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _some(flags: Sequence[bool]) -> float | None:
    """Share of flags that are set; None where none is, since there may be no budget at all."""
    return _share(flags) if any(flags) else None


def _all_fail(episodes: Sequence[Episode]) -> float | None:
    """Share of groups without an outcome above 0."""
    return _share([max(outcomes) <= 0 for outcomes in _group_outcomes(episodes)])


def _all_success(episodes: Sequence[Episode]) -> float | None:
    """Share of groups whose outcomes are equal and above 0."""
    return _share([0 < min(outcomes) == max(outcomes) for outcomes in _group_outcomes(episodes)])


def _group_outcomes(episodes: Sequence[Episode]) -> Iterable[list[float]]:
    groups: dict[str, list[float]] = {}
    for episode in episodes:
        if not episode.left_out:
            groups.setdefault(episode.group_id, []).append(episode.outcome or 0.0)
    return groups.values()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("em", "exact match", lambda e: _known(e.em), heading="EM", interval=True),
        Metric("f1", "F1", lambda e: _known(e.f1), heading="F1", interval=True),
        Metric(
            "cover_em",
            "answer contains a gold answer",
            lambda e: [cover_exact_match(e.answer, e.question.golden_answers)],
            heading="cover EM",
        ),
        Metric("outcome", "outcome", lambda e: _known(e.outcome)),
        Metric("confidence", "confidence that the policy states", lambda e: _known(confidence(e))),
        Metric("brier", "squared difference of stated confidence and exact match", _brier),
        Metric(
            "gold_documents",
            "gold documents found",
            lambda e: _known(gold_document_rate(e)),
            heading="gold",
        ),
        Metric(
            "searches",
            "searches per rollout",
            lambda e: [float(len(e.searches))],
            heading="searches",
            digits=2,
        ),
        Metric("tokens", "tokens per rollout", _tokens, heading="tokens", digits=1),
        Metric("query_tokens", "tokens per query", _query_tokens),
        Metric(
            "invalid_turns",
            "turns without a valid action",
            lambda e: [float(not s.valid) for s in e.steps if s.stop_reason != "refused"],
            heading="invalid",
        ),
        Metric("cut_turns", "turns cut by a limit of length", _cut_turns, heading="cut"),
        Metric(
            "information_gain", "information gain of a search, nats", _gains, heading="IG, nats"
        ),
        Metric(
            "information_gain_positive",
            "share of gains above 0",
            lambda e: [float(gain > 0) for gain in _gains(e)],
        ),
        Metric(
            "log_prob",
            "gold answer's log-prob given the documents",
            lambda e: [s.log_prob for s in e.searches if s.log_prob is not None],
        ),
        Metric(
            "baseline_log_prob",
            "gold answer's log-prob given documents of other questions",
            lambda e: [b for s in e.searches for b in s.baseline_log_probs or ()],
        ),
        Metric(
            "failed_searches",
            "searches that failed",
            batch=lambda es: _share([s.retrieval_failed for e in es for s in e.searches]),
        ),
        Metric(
            "failed_rollouts",
            "rollouts in which a search failed",
            batch=lambda es: _share([e.retrieval_failed for e in es]),
        ),
        Metric(
            "unscored_rollouts",
            "rollouts whose outcome could not be had",
            batch=lambda es: (
                _share([e.unscored for e in es])
                if any(e.unscored or e.outcome_parts for e in es)
                else None
            ),
        ),
        Metric(
            "cut_observations",
            "results that were cut to a budget of tokens",
            batch=lambda es: _some([bool(s.cut) for e in es for s in e.steps if s.documents]),
        ),
        Metric(
            "out_of_budget",
            "rollouts that ran out of tokens or seconds",
            batch=lambda es: _some([e.ended_by in ("tokens", "seconds") for e in es]),
        ),
        Metric("all_fail", "groups without a success", batch=_all_fail),
        Metric("all_success", "groups of equal outcomes above 0", batch=_all_success),
        Metric(
            "gain_gold_correlation",
            "correlation of gain and finding gold",
            batch=gain_gold_correlation,
        ),
    )
}
"""The metrics by name; :func:`register_metric` adds to it."""


def register_metric(metric: Metric) -> None:
    """Add a metric to the table.

    Evaluations then have it in results.json and in their table, training in metrics.jsonl and
    TensorBoard, and the viewer in its list and curves.

    Raises:
        ValueError: If the name is taken.
    """
    if metric.name in METRICS:
        raise ValueError(f"a metric named {metric.name!r} exists already; choose another name")
    METRICS[metric.name] = metric


def episode_metrics(episode: Episode) -> dict[str, float]:
    """The mean of each metric's numbers within an episode; one that is unknown is left out.

    The parts of the outcome stand beside the metrics (:func:`part_values`).
    """
    found: dict[str, float] = {}
    for metric in METRICS.values():
        if metric.values is not None and (values := metric.values(episode)):
            found[metric.name] = float(np.mean(values))
    return found | part_values(episode)


def part_values(episode: Episode) -> dict[str, float]:
    """What each part of an episode's outcome measured, as ``outcome_NAME``, before its weight."""
    parts = episode.outcome_parts
    return {f"outcome_{part.name}": part.value for part in parts if part.value is not None}


def batch_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Each metric over a batch of rollouts; one that is unknown is left out.

    Rollouts in which a search failed are left out of the means. The parts of the outcome stand
    beside the metrics (:func:`part_values`).
    """
    whole = unbroken(episodes)
    found: dict[str, float] = {}
    for metric in METRICS.values():
        if metric.values is not None:
            values = [value for episode in whole for value in metric.values(episode)]
            number = float(np.mean(values)) if values else None
        else:
            assert metric.batch is not None  # one of the two is there
            number = metric.batch(episodes)
        if number is not None:
            found[metric.name] = number
    parts = [part_values(episode) for episode in whole]
    for name in dict.fromkeys(name for values in parts for name in values):
        found[name] = float(np.mean([values[name] for values in parts if name in values]))
    return found
