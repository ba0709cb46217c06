"""Base of methods that add a signal of each search to the tokens of its query."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment
from igsearch_env.credit.groups import (
    check_choice,
    check_gamma,
    discounted_sums,
    group_advantages,
    less_siblings,
    rollout_groups,
)
from igsearch_env.episode import Episode, Step

Signals = list[list[float]]
"""One number per search of each episode; 0 adds nothing."""


@dataclass(frozen=True)
class QueryBonus(CreditAssignment):
    """Advantage ``A_i + alpha * S_t / |Q_t|`` on the tokens of query t, and A_i on all others.

    A_i is GRPO's advantage of rollout i. A subclass writes :meth:`signals`, which gives the value
    of each search; S_t is that value, or its return-to-go. A rollout in which a search failed gets
    0 everywhere. A search that found nothing gets no bonus, whatever :meth:`signals` gives it, a
    penalty included: it made no later search possible, and there is nothing to credit. To punish
    empty searches, write a :class:`CreditAssignment` of your own.

    Args:
        alpha: Weight of the signal. At 0 no search is scored.
        normalizer: What a signal is divided by. ``"query"`` is ``|Q_t|``, the number of query
            tokens without the tags: the tokens of each search share the same total (IG-Search).
            ``"batch_mean_query"`` is the mean ``|Q|`` of the batch, so that a token gets the same
            in a short and in a long query; rollouts with a failed search and queries without tokens
            do not count. ``"none"`` divides by 1.
        gamma: Discount of the return-to-go: S_t is the sum of gamma^(k-t) times signal k over the
            searches k >= t, so that a search shares in what it made possible. 0 is IG-Search.
        baseline: What S_t is compared with: nothing (``"none"``), or the mean S_t of the group's
            other rollouts (``"siblings"``), where a rollout without a t-th search counts as 0. That
            baseline does not depend on what the rollout itself does, so it does not bias the
            gradient, return-to-go included (verl issue 7244). A mean over searches that were made
            (``center`` of IG-Search) does with ``gamma`` above 0: a search loses a term for each
            later one, so that stopping pays.
        groups: Which groups get the signal: ``"all"``, ``"all_fail"`` (no outcome is above 0, so
            that GRPO alone learns nothing) or ``"not_all_success"`` (all but those whose outcomes
            are equal and above 0). Searches of other groups are not scored.
        alpha_final: The weight that ``alpha`` moves to linearly; None keeps ``alpha``.
        alpha_from: The share of training until which ``alpha`` holds.
        alpha_until: The share of training from which ``alpha_final`` holds. If both shares are
            equal, the weight changes at once.
    """

    alpha: float = 0.3
    normalizer: Literal["query", "batch_mean_query", "none"] = "query"
    gamma: float = 0.0
    baseline: Literal["none", "siblings"] = "none"
    groups: Literal["all", "all_fail", "not_all_success"] = "all"
    alpha_final: float | None = None
    alpha_from: float = 0.0
    alpha_until: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("alpha_final", self.alpha_final)):
            optional = name == "alpha_final" and value is None
            if not optional and not (isinstance(value, int | float) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        self._check_schedule()
        check_gamma(self.gamma)
        check_choice("normalizer", self.normalizer, ("query", "batch_mean_query", "none"))
        check_choice("baseline", self.baseline, ("none", "siblings"))
        check_choice("groups", self.groups, ("all", "all_fail", "not_all_success"))

    def _check_schedule(self) -> None:
        start, end = self.alpha_from, self.alpha_until
        numbers = isinstance(start, int | float) and isinstance(end, int | float)
        if not (numbers and 0 <= start <= end <= 1 and end > 0):
            raise ValueError(
                "alpha_from and alpha_until must be shares of training, the first one not above "
                f"the second, which is above 0; got {start!r} and {end!r}"
            )
        if (start, end) != (0, 1) and self.alpha_final is None:
            raise ValueError(
                f"alpha_from is {start} and alpha_until {end}, but alpha_final, the weight then, "
                "is not set"
            )

    def at(self, progress: float) -> Self:
        """The method with the weight that it has at a point of training.

        Raises:
            ValueError: If ``progress`` does not lie between 0 and 1.
        """
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must lie between 0 and 1, got {progress!r}")
        if self.alpha_final is None:
            return self
        marks, weights = (self.alpha_from, self.alpha_until), (self.alpha, self.alpha_final)
        alpha = float(np.interp(progress, marks, weights))
        return replace(self, alpha=alpha, alpha_final=None, alpha_from=0.0, alpha_until=1.0)

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        advantages = group_advantages(episodes)
        return [a + bonus for a, bonus in zip(advantages, self.bonuses(episodes), strict=True)]

    def bonuses(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """The bonus alone: one array of shape (policy tokens,) per episode, 0 outside queries.

        GRPO's advantage is not in it, so that another method can add the bonus to its own.
        """
        chosen = self._chosen_groups(episodes)
        mean_query = _mean_query_length(episodes)
        result = []
        for episode, returns in zip(episodes, self._returns(episodes), strict=True):
            tokens = np.zeros(episode.policy_tokens)
            if not episode.left_out and episode.group_id in chosen:
                for step, value in zip(episode.searches, returns, strict=True):
                    length = query_length(step)
                    if not step.documents and step.information_gain is None:
                        continue  # a search that found nothing earns nothing
                    if length:  # a query whose characters all share tokens with the tags has none
                        lengths = {"query": length, "batch_mean_query": mean_query, "none": 1.0}
                        tokens[step.query_tokens] += self.alpha * value / lengths[self.normalizer]
            result.append(tokens)
        return result

    def _returns(self, episodes: Sequence[Episode]) -> Signals:
        """S_t of each search, less its baseline."""
        returns = [discounted_sums(signals, self.gamma) for signals in self.signals(episodes)]
        if self.baseline == "none":
            return returns
        for members in rollout_groups(episodes).values():
            compared = less_siblings([returns[i] for i in members])
            for i, row in zip(members, compared, strict=True):
                returns[i] = row
        return returns

    @abstractmethod
    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """The value of each search of each episode.

        Those of failed rollouts, and of searches that found nothing, are not used.
        """

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        """True for the searches of the chosen groups; False for all where the weight is 0."""
        # A schedule that starts or ends at 0 is scored in between, so alpha_final counts too; at()
        # has taken it away from the method of a single step.
        chosen = self._chosen_groups(episodes) if self.alpha or self.alpha_final else set()
        return [[episode.group_id in chosen] * len(episode.searches) for episode in episodes]

    def _chosen_groups(self, episodes: Sequence[Episode]) -> set[str]:
        outcomes = {
            group: [episodes[i].outcome or 0.0 for i in members]
            for group, members in rollout_groups(episodes).items()
        }
        if self.groups == "all_fail":
            return {group for group, values in outcomes.items() if max(values) <= 0}
        if self.groups == "not_all_success":
            return {g for g, values in outcomes.items() if not 0 < min(values) == max(values)}
        return set(outcomes)


def newly_found(episode: Episode, ids: Iterable[str]) -> list[float]:
    """1.0 for each search that finds one of these documents for the first time, else 0.0.

    Of documents with the same words, the first that is found counts, whatever their ids.
    """
    missing, known, signals = set(ids), set[object](), []
    for step in episode.searches:
        found = [document for document in step.documents if document.id in missing]
        signals.append(float(any(known.isdisjoint(document.known_by) for document in found)))
        known.update(name for document in found for name in document.known_by)
    return signals


def query_length(step: Step) -> int:
    """``|Q_t|``: the number of tokens of a search's query, tags excluded."""
    return int(step.query_tokens.stop - step.query_tokens.start)


def _mean_query_length(episodes: Sequence[Episode]) -> float:
    kept = (episode for episode in episodes if not episode.left_out)
    lengths = [query_length(step) for episode in kept for step in episode.searches]
    return float(np.mean([n for n in lengths if n] or [1]))
