"""REINFORCE: the outcome less the mean of the batch, on every policy token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import on_every_token, rollout_groups
from igsearch_env.episode import Episode


@register_credit("reinforce")
@dataclass(frozen=True)
class Reinforce(CreditAssignment):
    """Outcome less the mean outcome of the whole batch, on every policy token (REINFORCE).

    Rollouts of different questions are compared. So a group that only fails is pushed down and one
    that only succeeds is pulled up, which methods that compare within a group do not do.
    """

    uses_information_gain = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        kept = [i for members in rollout_groups(episodes).values() for i in members]
        baseline = float(np.mean([episodes[i].outcome for i in kept])) if kept else 0.0
        advantages = [0.0] * len(episodes)
        for i in kept:
            advantages[i] = (episodes[i].outcome or 0.0) - baseline
        return on_every_token(episodes, advantages)
