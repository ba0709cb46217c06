"""IGPO: what each turn adds to the probability of the gold answer, discounted over the turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.groups import (
    check_choice,
    check_gamma,
    discounted_sums,
    rollout_groups,
)
from igsearch_env.credit.ig_search import IGSearch
from igsearch_env.credit.registry import register_credit
from igsearch_env.episode import Episode

_Rewards = list[float | None]


@register_credit("igpo")
@dataclass(frozen=True)
class IGPO:
    """Turn-level advantages from the growth of the policy's belief in the gold answer.

    p_t is the gold answer's probability after turn t, the exponential of its mean log-prob per
    token, and p_0 the one given the prompt alone. Turn t is worth r_t = p_t - p_{t-1}, the last
    turn its outcome. All are z-scored within the question's group, *then* summed from each turn on
    (IGPO, arXiv 2510.14967):
    A_t = sum over k >= t of gamma^(k-t) z(r_k), on all tokens of turn t.

    p_t is known after a search (with the refinement that follows it, if the environment scores
    refinements) and carries over an invalid turn, which has no reward of its own but its share of
    later ones; so it is with an answer that another attempt follows. A rollout in which a search
    failed gets 0 and counts for nobody.

    Args:
        measure: ``"probability"``, or ``"log_prob"`` for differences of mean log-probs.
        normalization: ``"joint"`` pools gains and outcomes of a group into one mean and deviation,
            ``"separate"`` scores either kind by itself, so that many small gains do not decide how
            much an outcome counts.
        gamma: Discount per turn.
        terminal: What the last turn is worth: ``"f1"``, or ``"outcome"``, what the environment
            paid.
        no_answer: What it is worth instead if the rollout ends without an answer.
    """

    uses_information_gain: ClassVar[bool] = False
    uses_answer_log_probs: ClassVar[bool] = True

    measure: Literal["probability", "log_prob"] = "probability"
    normalization: Literal["joint", "separate"] = "joint"
    gamma: float = 1.0
    terminal: Literal["f1", "outcome"] = "f1"
    no_answer: float = -2.0

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, ("probability", "log_prob"))
        check_choice("normalization", self.normalization, ("joint", "separate"))
        check_choice("terminal", self.terminal, ("f1", "outcome"))
        check_gamma(self.gamma)

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode.

        Raises:
            ValueError: If an episode has not ended, or no answer was scored given a prompt.
        """
        groups = rollout_groups(episodes)
        if episodes and all(episode.prior_log_prob is None for episode in episodes):
            raise ValueError(
                "igpo needs the answer's log-prob given the prompt and after each search; "
                "call settle_answer_log_probs(episodes, scorer, information_gain) first"
            )
        result = [np.zeros(episode.policy_tokens) for episode in episodes]
        for members in groups.values():
            rewards = self._normalized([self._rewards(episodes[i]) for i in members])
            for i, row in zip(members, rewards, strict=True):
                returns = discounted_sums([value or 0.0 for value in row], self.gamma)
                for step, value in zip(episodes[i].steps, returns, strict=True):
                    result[i][step.policy_tokens] = value
        return result

    def _rewards(self, episode: Episode) -> _Rewards:
        """One reward per turn, None where a turn has none of its own."""
        before = episode.prior_log_prob
        rewards: _Rewards = []
        for step in episode.steps[:-1]:
            gain = None
            if step.log_prob is not None:
                if before is not None:
                    gain = self._value(step.log_prob) - self._value(before)
                before = step.log_prob
            rewards.append(gain)
        if episode.answer is None:
            last: float | None = self.no_answer
        else:
            last = episode.f1 if self.terminal == "f1" else episode.outcome
        if last is None:
            raise ValueError(
                f"the episode of question {episode.question.id!r} has an answer but no F1; "
                "the environment fills it in, or choose terminal='outcome'"
            )
        return [*rewards, last][: len(episode.steps)]

    def _value(self, log_prob: float) -> float:
        return math.exp(log_prob) if self.measure == "probability" else log_prob

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


@register_credit("igpo_code")
@dataclass(frozen=True)
class IGPOCode(IGPO):
    """IGPO as the released training script sets it: log-prob differences, normalised apart."""

    measure: Literal["probability", "log_prob"] = "log_prob"
    normalization: Literal["joint", "separate"] = "separate"


@register_credit("igpo_ig_search")
@dataclass(frozen=True)
class IGPOWithIGSearch:
    """IGPO's advantage of a turn, plus IG-Search's bonus on the tokens of its query.

    IGPO says how much a turn moved the belief, IG-Search how much of that its documents did rather
    than any documents.

    Args:
        igpo: IGPO with its options.
        ig_search: IG-Search with its options; its outcome advantage is not used.
    """

    uses_information_gain: ClassVar[bool] = True
    uses_answer_log_probs: ClassVar[bool] = True

    igpo: IGPO = field(default_factory=IGPO)
    ig_search: IGSearch = field(default_factory=IGSearch)

    def at(self, progress: float) -> Self:
        """The method at a point of training, from 0.0 to 1.0."""
        return replace(self, ig_search=self.ig_search.at(progress))

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        """For each search of each finished episode, whether IG-Search looks at its gain."""
        return self.ig_search.needs_gain(episodes)

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        bonuses = self.ig_search.bonuses(episodes)
        return [turn + bonus for turn, bonus in zip(self.igpo(episodes), bonuses, strict=True)]


def _z_score(value: float, values: Sequence[float]) -> float:
    """With the population's deviation, as IGPO has it."""
    deviation = math.sqrt(float(np.var(values)) + 1e-8) + 1e-6
    return (value - float(np.mean(values))) / deviation
