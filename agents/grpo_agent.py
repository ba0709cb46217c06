"""The GRPO agent: a policy, the scorer over its weights, and a way to assign credit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.transformers_policy import TransformersPolicy
from igsearch_env.completion import Completion
from igsearch_env.credit import CreditAssignment, Hindsight, assign_credit, settle_for
from igsearch_env.episode import Episode
from igsearch_env.gain.information_gain import InformationGain

HELD_TOKENS = 32_768
"""Tokens of finished episodes whose keys and values are kept until their searches are scored."""


class GRPOAgent:
    """Acts, scores its own searches, and turns episodes into token-level advantages.

    Args:
        policy: Samples the turns.
        information_gain: How the gain of a search is computed.
        credit: The credit method. Only what it uses is scored; see
            :class:`igsearch_env.credit.CreditAssignment`.

    Raises:
        TypeError: If ``credit`` is no credit method.
    """

    def __init__(
        self,
        policy: TransformersPolicy,
        information_gain: InformationGain,
        credit: CreditAssignment,
    ) -> None:
        if not isinstance(credit, CreditAssignment):
            raise TypeError(
                f"credit must be a CreditAssignment, such as make_credit('outcome'); got {credit!r}"
            )
        self.policy = policy
        self.information_gain = information_gain
        self.credit = credit
        self.scorer = policy.scorer()
        if credit.needs_scorer():
            policy.memory.finished_tokens = HELD_TOKENS

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Sample the next turn of each episode."""
        return self.policy.act(episodes)

    def settle(self, episodes: Sequence[Episode], progress: float = 0.0) -> list[Episode]:
        """Compute what the credit method reads, with the present weights.

        Call it before these weights change: gain and belief are defined under the policy that
        sampled.

        Args:
            episodes: Finished episodes.
            progress: As for :meth:`advantages`.

        Returns:
            The episodes in the same order; see :func:`igsearch_env.credit.settle_for`.
        """
        credit = self.credit.at(progress)
        return settle_for(credit, episodes, self.information_gain, self.scorer)

    def advantages(
        self, episodes: Sequence[Episode], progress: float = 0.0
    ) -> list[NDArray[np.float64]]:
        """Advantage of each policy token: one array of shape (policy tokens,) per episode.

        Args:
            episodes: Finished and settled episodes.
            progress: How far training has come, from 0 to 1, for methods that change with it.

        Raises:
            ValueError: If an advantage is not a finite number, or one is missing or too many.
        """
        return assign_credit(self.credit.at(progress), episodes)

    def hindsight(self, episodes: Sequence[Episode], progress: float = 0.0) -> Hindsight | None:
        """What a teacher reads before each episode; None if the credit method has no teacher.

        Args:
            episodes: Finished episodes.
            progress: As for :meth:`advantages`.
        """
        return self.credit.at(progress).hindsight(episodes)
