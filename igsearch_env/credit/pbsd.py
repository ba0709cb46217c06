"""PBSD: GRPO's advantages, weighted turn by turn by what the answer says about the turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import (
    check_choice,
    group_advantages,
    leave_one_out,
    rollout_groups,
)
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
    all rollouts of a group end alike nothing is learned, as with GRPO.

    What stands before the prompt moves the probability of a turn whatever it says, most of all that
    of the first one. So h_t is less the mean of the siblings' t-th turns, and 0 without any. That,
    the limit, the division and the wording of what is told are ours.

    Args:
        limit: Greatest shift that counts, in nats per token; 0 is GRPO.
        baseline: What a shift is compared with: ``"siblings"``, or nothing (``"none"``), as
            published.
    """

    uses_information_gain = False
    uses_hindsight_shift = True

    limit: float = 0.5
    baseline: Literal["siblings", "none"] = "siblings"

    def __post_init__(self) -> None:
        if not (isinstance(self.limit, int | float) and 0 <= self.limit < math.inf):
            raise ValueError(f"limit must be a finite number of at least 0, got {self.limit!r}")
        check_choice("baseline", self.baseline, ("siblings", "none"))

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode.

        Raises:
            ValueError: If shifts were not computed.
        """
        turns = [
            step.hindsight_shift
            for episode in episodes
            for step in episode.steps
            if not episode.left_out and step.turn.text.strip()
        ]
        if turns and all(shift is None for shift in turns):
            raise ValueError(
                "PBSD needs to know how probable turns are for the policy that is told the answer; "
                "call igsearch_env.gain.hindsight.settle_hindsight(episodes, scorer, "
                "information_gain) first"
            )
        return [
            advantage * self._weights(episode, shifts, math.copysign(1.0, advantage))
            for episode, shifts, advantage in zip(
                episodes, self._shifts(episodes), group_advantages(episodes), strict=True
            )
        ]

    def _shifts(self, episodes: Sequence[Episode]) -> list[list[float]]:
        """h_t of each turn of each episode; 0 where there is none, which weighs as others do."""
        found = [_of_turns(episode) for episode in episodes]
        if self.baseline == "none":
            return [[shift or 0.0 for shift in row] for row in found]
        result = [[0.0] * len(row) for row in found]
        for members in rollout_groups(episodes).values():
            for place in range(max(len(found[i]) for i in members)):
                siblings = [i for i in members if place < len(found[i])]
                known = [(i, v) for i in siblings if (v := found[i][place]) is not None]
                values = leave_one_out([value for _, value in known])
                for (i, _), value in zip(known, values, strict=True):
                    result[i][place] = value
        return result

    def _weights(
        self, episode: Episode, shifts: Sequence[float], sign: float
    ) -> NDArray[np.float64]:
        weights = np.ones(episode.policy_tokens)
        number = -1
        for step in episode.steps:
            number += not step.call
            shift = min(max(shifts[number], -self.limit), self.limit)
            weights[step.policy_tokens] = math.exp(sign * shift)
        return weights / weights.mean() if len(weights) else weights


def _of_turns(episode: Episode) -> list[float | None]:
    """The shift of each turn, which its last call has."""
    return [
        step.hindsight_shift
        for index, step in enumerate(episode.steps)
        if index == episode.turn_of(index).stop - 1
    ]
