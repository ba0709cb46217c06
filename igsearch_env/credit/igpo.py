"""IGPO: a reward per turn, by which the probability of the gold answer grew in that turn."""

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
    check_gamma,
    discounted_sums,
    less_siblings,
    rollout_groups,
)
from igsearch_env.episode import Episode
from igsearch_env.gain.belief import belief_shifts

_Rewards = list[float | None]


@register_credit("igpo")
@dataclass(frozen=True)
class IGPO(CreditAssignment):
    """Turn-level advantages from the growth of the policy's belief in the gold answer.

    p_t is the gold answer's probability after turn t: the exponential of its mean log-prob per
    token. The reward of turn t is its growth, that of the last turn its outcome (IGPO, arXiv
    2510.14967). A_t is the sum of gamma^(k-t) r_k over k >= t, less that of the group's other
    rollouts, on all tokens of turn t. ``igpo_paper`` z-scores the rewards of a group instead,
    *then* sums: A_t = sum over k >= t of gamma^(k-t) z(r_k).

    The growth is what the documents of the turn changed, where the environment pays only what is
    new (:func:`igsearch_env.gain.belief.belief_shifts`), else p_t - p_{t-1} as in the paper, p_0
    being that given the prompt alone. It is measured after each search, with the refinement that
    follows it if the environment scores refinements. An invalid turn leaves p_t as it was: it has
    no reward of its own but shares in later ones. The same holds for an answer that another attempt
    follows. A rollout in which a search failed gets 0 and is left out of its group's statistics.

    Args:
        measure: ``"probability"``, or ``"log_prob"`` for differences of mean log-probs.
        normalization: ``"leave_one_out"`` subtracts the mean of the others' sums from turn t on, 0
            where a rollout has ended; nothing is divided by a deviation. ``"joint"`` takes one mean
            and deviation over the gains and outcomes of a group. ``"separate"`` takes them apart,
            so that many small gains do not decide how much an outcome counts. Both subtract a mean
            for each turn that a rollout has, so how many turns it chooses to take changes what is
            subtracted (verl issue 7244): where most rollouts of a group give no answer, a search
            for anything is paid.
        gamma: Discount per turn.
        terminal: The reward of the last turn: ``"f1"``, or ``"outcome"``, the environment's.
        no_answer: The reward of the last turn if the rollout ends without an answer.
    """

    uses_information_gain = False
    uses_belief = True

    measure: Literal["probability", "log_prob"] = "probability"
    normalization: Literal["joint", "separate", "leave_one_out"] = "leave_one_out"
    gamma: float = 1.0
    terminal: Literal["f1", "outcome"] = "f1"
    no_answer: float = -2.0

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, ("probability", "log_prob"))
        known = ("joint", "separate", "leave_one_out")
        check_choice("normalization", self.normalization, known)
        check_choice("terminal", self.terminal, ("f1", "outcome"))
        check_gamma(self.gamma)

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode.

        Raises:
            ValueError: If an episode has not ended, or beliefs were not computed.
        """
        groups = rollout_groups(episodes)
        if episodes and all(episode.prior_log_prob is None for episode in episodes):
            raise ValueError(
                "igpo needs the policy's belief in the gold answer before the first search and "
                "after each one; call settle_belief(episodes, scorer, information_gain) first"
            )
        result = [np.zeros(episode.policy_tokens) for episode in episodes]
        for members in groups.values():
            rewards = [self._rewards(episodes[i]) for i in members]
            if self.normalization != "leave_one_out":
                rewards = self._normalized(rewards)
            # The discount runs over the z-scores. Discounting first and z-scoring the sums, as
            # reward-to-go usually is, would give early turns more weight in the group's mean and
            # deviation, since they sum over more terms. A turn without a reward adds 0, which is
            # the group's mean, and still takes up one step of the discount.
            returns = [discounted_sums([v or 0.0 for v in row], self.gamma) for row in rewards]
            if self.normalization == "leave_one_out":
                returns = less_siblings(returns)
            for i, row in zip(members, returns, strict=True):
                for step, value in zip(episodes[i].steps, row, strict=True):
                    result[i][step.policy_tokens] = value
        return result

    def _rewards(self, episode: Episode) -> _Rewards:
        """One reward per turn, None where a turn has none of its own."""
        rewards = belief_shifts(episode, math.exp if self.measure == "probability" else float)[:-1]
        if episode.answer is None:
            last: float | None = self.no_answer
        else:
            last = episode.f1 if self.terminal == "f1" else episode.outcome
        if last is None:
            raise ValueError(
                f"the episode of question {episode.question.id!r} has an answer but no F1; "
                "the environment fills it in, or choose terminal='outcome'"
            )
        return [*rewards, last][: len(episode.steps)]  # an episode without steps has no last turn

    def _normalized(self, rewards: Sequence[_Rewards]) -> list[_Rewards]:
        """The rewards of a group, z-scored, each turn at its place."""
        gains = [value for row in rewards for value in row[:-1] if value is not None]
        outcomes = [value for row in rewards for value in row[-1:] if value is not None]
        if self.normalization == "joint":
            gains = outcomes = gains + outcomes
        return [
            [
                *(None if value is None else _z_score(value, gains) for value in row[:-1]),
                *(None if value is None else _z_score(value, outcomes) for value in row[-1:]),
            ]
            for row in rewards
        ]


@register_credit("igpo_paper")
@dataclass(frozen=True)
class IGPOPaper(IGPO):
    """IGPO as published: gains and outcomes of a group are z-scored together."""

    measure: Literal["probability", "log_prob"] = "probability"
    normalization: Literal["joint", "separate", "leave_one_out"] = "joint"


@register_credit("igpo_code")
@dataclass(frozen=True)
class IGPOCode(IGPO):
    """IGPO as the released training script sets it: log-prob differences, normalised apart."""

    measure: Literal["probability", "log_prob"] = "log_prob"
    normalization: Literal["joint", "separate", "leave_one_out"] = "separate"


def _z_score(value: float, values: Sequence[float]) -> float:
    """With the population's deviation and both small constants, as IGPO's code computes it."""
    deviation = math.sqrt(float(np.var(values)) + 1e-8) + 1e-6
    return (value - float(np.mean(values))) / deviation
