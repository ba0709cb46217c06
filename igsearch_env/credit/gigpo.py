"""GiGPO: whole rollouts are compared, and so are steps that start from the same state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.groups import (
    check_choice,
    check_gamma,
    discounted_sums,
    rollout_groups,
)
from igsearch_env.episode import Episode

_EPSILON = 1e-6


@register_credit("gigpo")
@dataclass(frozen=True)
class GiGPO(CreditAssignment):
    """A = A_E + omega * A_S on all tokens of a step (GiGPO, arXiv 2505.10978).

    A_E is the group-normalised outcome. A_S compares steps of one group that start from the same
    anchor state, the question at first and the latest observation afterwards: the step's
    discounted return, normalised over the steps of that state. A state that occurs once gives 0.
    Deviations are unbiased. A rollout in which a search failed gets 0 and is left out of its
    group's statistics.

    Args:
        omega: Weight of the step term.
        gamma: Discount of the outcome per step before the end.
        similarity: Two states are the same if the difflib ratio of their texts is at least this; a
            step joins the first state that it matches. 1.0 requires equal texts.
        invalid_penalty: Subtracted from the return of an invalid step, after discounting, so that
            earlier steps do not pay for it; and from its rollout's outcome.
        rows: What the mean and deviation of A_E run over: ``"rollouts"`` (the paper), or
            ``"steps"`` (the released code). With steps a rollout counts once per step, so that long
            ones weigh more, and an invalid step lowers the score of its own row only.
    """

    uses_information_gain = False

    omega: float = 1.0
    gamma: float = 0.95
    similarity: float = 0.9
    invalid_penalty: float = 0.01
    rows: Literal["rollouts", "steps"] = "rollouts"

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        check_choice("rows", self.rows, ("rollouts", "steps"))
        if not (self.omega >= 0 and self.invalid_penalty >= 0 and 0 <= self.similarity <= 1):
            raise ValueError(
                "omega and invalid_penalty must be at least 0 and similarity between 0 and 1, got "
                f"{self.omega!r}, {self.invalid_penalty!r} and {self.similarity!r}"
            )

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode.

        Raises:
            ValueError: If an episode has not ended.
        """
        result = [np.zeros(episode.policy_tokens) for episode in episodes]
        for members in rollout_groups(episodes).values():
            group = [episodes[i] for i in members]
            whole = self._episode_term(group)
            single = self._step_term(group)
            for i, of_rollout, of_step in zip(members, whole, single, strict=True):
                for step, a, b in zip(episodes[i].steps, of_rollout, of_step, strict=True):
                    result[i][step.policy_tokens] = a + self.omega * b
        return result

    def _episode_term(self, group: Sequence[Episode]) -> list[list[float]]:
        """A_E of each step of each rollout."""
        penalties = [[self.invalid_penalty * (not s.valid) for s in e.steps] for e in group]
        outcomes = [episode.outcome or 0.0 for episode in group]
        if self.rows == "steps":
            scores = [[r - p for p in row] for r, row in zip(outcomes, penalties, strict=True)]
            flat = [score for row in scores for score in row]
            if len(flat) == 1:
                # The released code keeps the score of a single row: mean 0 and deviation 1.
                return scores
            normal = iter(_normalized(flat))
            return [[next(normal) for _ in row] for row in scores]
        values = _normalized([r - sum(row) for r, row in zip(outcomes, penalties, strict=True)])
        return [[value] * len(e.steps) for value, e in zip(values, group, strict=True)]

    def _step_term(self, group: Sequence[Episode]) -> list[list[float]]:
        """A_S of each step of each rollout."""
        returns = [self._returns(episode) for episode in group]
        places = [(row, t) for row, episode in enumerate(group) for t in range(len(episode.steps))]
        states = [state for episode in group for state in _anchor_states(episode)]
        clusters: dict[int, list[tuple[int, int]]] = {}
        for place, number in zip(places, cluster_texts(states, self.similarity), strict=True):
            clusters.setdefault(number, []).append(place)
        result = [[0.0] * len(episode.steps) for episode in group]
        for places in clusters.values():
            values = _normalized([returns[row][t] for row, t in places])
            for (row, t), value in zip(places, values, strict=True):
                result[row][t] = value
        return result

    def _returns(self, episode: Episode) -> list[float]:
        """R_t = r_t + gamma R_{t+1}, r the outcome at the last step; less the step's penalty."""
        rewards = [0.0] * len(episode.steps)
        if rewards:
            rewards[-1] = episode.outcome or 0.0
        returns = discounted_sums(rewards, self.gamma)
        return [
            value - self.invalid_penalty * (not step.valid)
            for value, step in zip(returns, episode.steps, strict=True)
        ]


@register_credit("gigpo_code")
@dataclass(frozen=True)
class GiGPOCode(GiGPO):
    """GiGPO as the released code (verl-agent) computes it: A_E over step rows."""

    rows: Literal["rollouts", "steps"] = "steps"


def _anchor_states(episode: Episode) -> list[str]:
    """What each step started from: the question, then the latest observation.

    A further call of a turn starts from what its turn started from and the calls before it.
    """
    states: list[str] = []
    seen = episode.question.text
    for index, step in enumerate(episode.steps):
        if not step.call:
            turn = [episode.steps[i] for i in episode.turn_of(index - 1)] if index else []
            replies = [reply.text for earlier in turn for reply in earlier.replies]
            seen = "".join(replies) if index else seen
        else:
            seen += episode.steps[index - 1].turn.text
        states.append(seen)
    return states


def cluster_texts(texts: Sequence[str], similarity: float) -> list[int]:
    """The cluster of each text: the first one whose first member is similar to it, or a new one.

    Args:
        texts: Texts in order.
        similarity: Least difflib ratio to the first member of a cluster.
    """
    # A matcher caches its second text, so that the first text of a cluster is analysed only once.
    firsts: list[SequenceMatcher[str]] = []
    known: dict[str, int] = {}
    for text in texts:
        if text not in known:
            found = (n for n, first in enumerate(firsts) if _similar(first, text, similarity))
            known[text] = next(found, len(firsts))
            if known[text] == len(firsts):
                firsts.append(SequenceMatcher(None, "", text))
    return [known[text] for text in texts]


def _similar(first: SequenceMatcher[str], text: str, threshold: float) -> bool:
    if threshold == 1.0:
        return False  # an equal text would have been found in the dictionary already
    first.set_seq1(text)
    # ratio() is quadratic; the first two are upper bounds of it and quick.
    return (
        first.real_quick_ratio() >= threshold
        and first.quick_ratio() >= threshold
        and first.ratio() >= threshold
    )


def _normalized(values: Sequence[float]) -> list[float]:
    """(x - mean) / (unbiased std + epsilon); 0 for a single value or equal ones."""
    array = np.array(values, dtype=np.float64)
    if array.size < 2 or array.min() == array.max():
        return [0.0] * array.size
    return [float(x) for x in (array - array.mean()) / (array.std(ddof=1) + _EPSILON)]
