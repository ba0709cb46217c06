"""RLOO: the outcome less the mean of the group's other rollouts, on every policy token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import leave_one_out, on_every_token, rollout_groups
from igsearch_env.episode import Episode


@register_credit("rloo")
@dataclass(frozen=True)
class RLOO(CreditAssignment):
    """Outcome less the mean outcome of the group's other rollouts, on every policy token.

    Nothing is divided by a deviation (RLOO, arXiv 2402.14740), so a group in which one of five
    rollouts succeeds counts less than one in which two do. The only rollout of a group gets 0. One
    in which a search failed gets 0 and is left out of its group's statistics.
    """

    uses_information_gain = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        advantages = [0.0] * len(episodes)
        for members in rollout_groups(episodes).values():
            outcomes = [episodes[i].outcome or 0.0 for i in members]
            for i, value in zip(members, leave_one_out(outcomes), strict=True):
                advantages[i] = value
        return on_every_token(episodes, advantages)
