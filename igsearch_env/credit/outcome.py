"""The outcome alone, on every policy token: GRPO, RLOO, and REINFORCE with a batch baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.groups import rollout_groups
from igsearch_env.credit.registry import register_credit
from igsearch_env.episode import Episode


def group_advantages(episodes: Sequence[Episode], epsilon: float = 1e-6) -> list[float]:
    """Group-normalised outcome of each episode: (R - mean) / (std + epsilon).

    The standard deviation is the unbiased one (GRPO, arXiv 2402.03300, eq. 4.1.2). An episode in
    which a search failed is left out of its group's statistics and gets 0, and so does a group of
    fewer than two others, or one whose outcomes are all equal.

    Raises:
        ValueError: If an episode has not ended.
    """
    advantages = [0.0] * len(episodes)
    for members in rollout_groups(episodes).values():
        outcomes = np.array([episodes[i].outcome for i in members], dtype=np.float64)
        if len(members) < 2 or outcomes.min() == outcomes.max():
            continue
        scaled = (outcomes - outcomes.mean()) / (outcomes.std(ddof=1) + epsilon)
        for i, value in zip(members, scaled, strict=True):
            advantages[i] = float(value)
    return advantages


@register_credit("outcome")
@dataclass(frozen=True)
class GRPO:
    """Group-normalised outcome on every policy token (GRPO)."""

    uses_information_gain: ClassVar[bool] = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        return _on_every_token(episodes, group_advantages(episodes))


@register_credit("rloo")
@dataclass(frozen=True)
class RLOO:
    """Outcome less the mean outcome of the group's other rollouts, on every policy token.

    Nothing is divided by (RLOO, arXiv 2402.14740), so a group in which one of five rollouts
    succeeds counts less than one in which two do. A lone rollout gets 0; one in which a search
    failed gets 0 and counts for nobody.
    """

    uses_information_gain: ClassVar[bool] = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        advantages = [0.0] * len(episodes)
        for members in rollout_groups(episodes).values():
            outcomes = [episodes[i].outcome or 0.0 for i in members]
            for i, value in zip(members, leave_one_out(outcomes), strict=True):
                advantages[i] = value
        return _on_every_token(episodes, advantages)


@register_credit("reinforce")
@dataclass(frozen=True)
class Reinforce:
    """Outcome less the mean outcome of the whole batch, on every policy token (REINFORCE).

    Unlike in the methods that compare within a group, a group of failures alone is pushed down and
    one of successes alone pulled up: questions are not compared with themselves.
    """

    uses_information_gain: ClassVar[bool] = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        kept = [i for members in rollout_groups(episodes).values() for i in members]
        baseline = float(np.mean([episodes[i].outcome for i in kept])) if kept else 0.0
        advantages = [0.0] * len(episodes)
        for i in kept:
            advantages[i] = (episodes[i].outcome or 0.0) - baseline
        return _on_every_token(episodes, advantages)


def leave_one_out(values: Sequence[float]) -> list[float]:
    """Each value less the mean of the others; 0 if there are none.

    >>> leave_one_out([1.0, 0.0, 0.5])
    [0.75, -0.75, 0.0]
    """
    others = len(values) - 1
    if others < 1:
        return [0.0] * len(values)
    total = float(np.sum(values))
    return [value - (total - value) / others for value in values]


def _on_every_token(
    episodes: Sequence[Episode], advantages: Sequence[float]
) -> list[NDArray[np.float64]]:
    return [
        np.full(episode.policy_tokens, advantage)
        for episode, advantage in zip(episodes, advantages, strict=True)
    ]
