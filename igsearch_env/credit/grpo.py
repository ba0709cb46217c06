"""GRPO: the outcome within its group, on every policy token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import group_advantages, on_every_token
from igsearch_env.episode import Episode


@register_credit("outcome")
@dataclass(frozen=True)
class GRPO(CreditAssignment):
    """Group-normalised outcome on every policy token (GRPO)."""

    uses_information_gain = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        return on_every_token(episodes, group_advantages(episodes))
