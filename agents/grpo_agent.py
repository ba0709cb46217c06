"""The GRPO agent: a policy, the scorer over its weights, and a way to assign credit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.transformers_policy import TransformersPolicy
from igsearch_env.completion import Completion
from igsearch_env.credit import CreditAssignment, credit_at
from igsearch_env.episode import Episode
from igsearch_env.gain.belief import settle_answer_log_probs
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.scorer import AnswerScorer

HELD_TOKENS = 32_768
"""Tokens of finished episodes whose keys and values are kept until their searches are judged."""


class GRPOAgent:
    """Acts, judges its own searches, and turns episodes into token-level advantages.

    Args:
        policy: Samples the turns.
        information_gain: How the gain of a search is computed.
        credit: The credit assignment method. One with an attribute ``uses_information_gain`` that
            is False is spared the scoring, one with a method ``needs_gain`` that of the searches
            that it leaves out; one with a true ``uses_answer_log_probs`` gets the
            policy's belief in the gold answer before the first search and after each one.
    """

    def __init__(
        self,
        policy: TransformersPolicy,
        information_gain: InformationGain,
        credit: CreditAssignment,
    ) -> None:
        self.policy = policy
        self.information_gain = information_gain
        self.credit = credit
        self.scorer = policy.scorer()
        if self.uses_information_gain or self.uses_answer_log_probs:
            policy.memory.finished_tokens = HELD_TOKENS

    @property
    def uses_information_gain(self) -> bool:
        """Whether the credit method looks at information gain."""
        return needs_information_gain(self.credit)

    @property
    def uses_answer_log_probs(self) -> bool:
        """Whether it looks at the policy's belief in the gold answer: it does if it says so."""
        return needs_answer_log_probs(self.credit)

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Sample the next turn of each episode."""
        return self.policy.act(episodes)

    def settle(self, episodes: Sequence[Episode], progress: float = 0.0) -> list[Episode]:
        """Settle what the credit method looks at, with the present weights.

        That is the information gain of the searches that count, the log-probs of the gold answer,
        or nothing. Call it before these weights change: the gain is defined under the policy that
        sampled.

        Args:
            episodes: Finished episodes.
            progress: As for :meth:`advantages`.
        """
        credit = credit_at(self.credit, progress)
        return settle_for(credit, episodes, self.information_gain, self.scorer)

    def advantages(
        self, episodes: Sequence[Episode], progress: float = 0.0
    ) -> list[NDArray[np.float64]]:
        """Advantage of each policy token: one array of shape (policy tokens,) per episode.

        Args:
            episodes: Finished and settled episodes.
            progress: How far training has come, from 0 to 1, for methods that change with it.
        """
        return credit_at(self.credit, progress)(episodes)


def settle_for(
    credit: CreditAssignment,
    episodes: Sequence[Episode],
    information_gain: InformationGain,
    scorer: AnswerScorer,
) -> list[Episode]:
    """Settle what a credit method looks at: gains, log-probs of the gold answer, or nothing.

    A method may say with ``needs_gain(episodes)``, one truth value for each search of each episode,
    that it does not look at the gains of some; they stay as they are.
    """
    if needs_information_gain(credit):
        wanted = credit.needs_gain(episodes) if hasattr(credit, "needs_gain") else None
        episodes = information_gain.settle(episodes, scorer, wanted)
    if needs_answer_log_probs(credit):
        episodes = settle_answer_log_probs(episodes, scorer, information_gain)
    return list(episodes)


def needs_answer_log_probs(credit: CreditAssignment) -> bool:
    """Whether a method looks at the policy's belief in the gold answer: if it says so."""
    return bool(getattr(credit, "uses_answer_log_probs", False))


def needs_information_gain(credit: CreditAssignment) -> bool:
    """Whether a credit method looks at information gain: it does unless it denies it."""
    return bool(getattr(credit, "uses_information_gain", True))
