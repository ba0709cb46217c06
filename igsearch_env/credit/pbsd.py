"""PBSD: GRPO's advantages, weighted turn by turn by what the answer says about the turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import group_advantages
from igsearch_env.episode import Episode


@register_credit("pbsd")
@dataclass(frozen=True)
class PBSD(CreditAssignment):
    """A turn that the gold answer makes more probable gets more of a success, less of a failure.

    After privileged Bayesian self-distillation (PBSD, arXiv 2606.09348): the weight of turn t is
    exp(sign(A) * clip(h_t, -limit, limit)), with A GRPO's advantage and h_t how much more probable
    the policy finds the turn once it is told the gold answer
    (:func:`igsearch_env.gain.hindsight.settle_hindsight`), in nats per token. The weights of a
    rollout are divided by their mean over its tokens, so that its advantages keep their sum. Where
    all rollouts of a group end alike nothing is learned, as with GRPO. The limit, the division and
    the wording of what is told are ours.

    Args:
        limit: Greatest shift that counts, in nats per token; 0 is GRPO.
    """

    uses_information_gain = False
    uses_hindsight_shift = True

    limit: float = 0.5

    def __post_init__(self) -> None:
        if not (isinstance(self.limit, int | float) and 0 <= self.limit < math.inf):
            raise ValueError(f"limit must be a finite number of at least 0, got {self.limit!r}")

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode.

        Raises:
            ValueError: If shifts were not computed.
        """
        turns = [step for episode in episodes for step in episode.steps]
        if turns and all(step.hindsight_shift is None for step in turns):
            raise ValueError(
                "PBSD needs to know how probable turns are for the policy that is told the answer; "
                "call settle_hindsight(episodes, scorer, information_gain) first"
            )
        return [
            advantage * self._weights(episode, math.copysign(1.0, advantage))
            for episode, advantage in zip(episodes, group_advantages(episodes), strict=True)
        ]

    def _weights(self, episode: Episode, sign: float) -> NDArray[np.float64]:
        weights = np.ones(episode.policy_tokens)
        for index, step in enumerate(episode.steps):
            shift = episode.steps[episode.turn_of(index).stop - 1].hindsight_shift
            # A turn without a shift (too long a context) is neither for nor against the answer.
            shift = min(max(shift or 0.0, -self.limit), self.limit)
            weights[step.policy_tokens] = math.exp(sign * shift)
        return weights / weights.mean() if len(weights) else weights
