"""MR-Search: every attempt at the question against the same attempt of the other rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import (
    check_gamma,
    discounted_sums,
    leave_one_out,
    rollout_groups,
)
from igsearch_env.episode import Episode


@register_credit("mr_search")
@dataclass(frozen=True)
class MRSearch(CreditAssignment):
    """A_n = sum over m >= n of gamma^(m-n) (r_m - mean r_m of the others), on attempt n's tokens.

    r_n is the outcome of attempt n at the question. The mean runs over the other rollouts of the
    group that made attempt n; if there are none, the attempt gets 0. Nothing is divided by a
    deviation. With gamma above 0 an attempt shares in what later attempts gain. The environment
    plays several attempts with ``max_attempts``; with one attempt this is RLOO. A rollout in which
    a search failed gets 0 and is left out of its group's statistics.

    Args:
        gamma: Discount per attempt.
    """

    uses_information_gain = False

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode.

        Raises:
            ValueError: If an episode has not ended.
        """
        result = [np.zeros(episode.policy_tokens) for episode in episodes]
        for members in rollout_groups(episodes).values():
            outcomes = {i: _attempt_outcomes(episodes[i]) for i in members}
            rewards: dict[int, list[float]] = {i: [] for i in members}
            for n in range(max(map(len, outcomes.values()))):
                reached = [i for i in members if len(outcomes[i]) > n]
                values = leave_one_out([outcomes[i][n] for i in reached])
                for i, value in zip(reached, values, strict=True):
                    rewards[i].append(value)
            for i in members:
                returns = discounted_sums(rewards[i], self.gamma)
                for step in episodes[i].steps:
                    result[i][step.policy_tokens] = returns[step.attempt]
        return result


def _attempt_outcomes(episode: Episode) -> tuple[float, ...]:
    """The outcome of each attempt; the episode's own where there was only one."""
    # None would be an outcome that could not be had; such episodes are in no group.
    return tuple(one or 0.0 for one in episode.attempt_outcomes or (episode.outcome,))
