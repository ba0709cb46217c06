"""What is computed for a credit method: what it reads, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from igsearch_env import Episode
from igsearch_env.baselines import SearchOnceAgent
from igsearch_env.credit import CreditAssignment, make_credit, settle_for
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from tests.igsearch_env.fakes import ITALY, PERU, QUESTIONS, FakeRetriever, FakeScorer

N = 2


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """One search each, unsettled, the real documents and N = 2 others to compare them with."""
    engine = make_engine(QUESTIONS, FakeRetriever(), None, top_k=1, num_counterfactuals=N)
    return collect(engine, SearchOnceAgent(), [PERU, ITALY])


@dataclass(frozen=True)
class OnlySome(CreditAssignment):
    """Reads the gain of the first question's search."""

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        return [[e.question is PERU] * len(e.searches) for e in episodes]

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        return [np.zeros(episode.policy_tokens) for episode in episodes]


@pytest.mark.parametrize(
    ("credit", "scored", "gains", "beliefs"),
    [
        (make_credit("outcome"), [], 0, 0),
        (make_credit("ig_search"), [2 * (1 + N)], 2, 0),
        (make_credit("ig_search", alpha=0.0), [], 0, 0),
        (OnlySome(), [1 + N], 1, 0),
        # Given the prompt, before the documents and after them.
        (make_credit("igpo"), [2 * 3], 0, 2),
        (make_credit("enabling"), [2 * (1 + N)], 2, 0),  # no search follows another one
        (make_credit("belief_group"), [2 * 3], 0, 2),
        (make_credit("pbsd"), [2 * 2 * 2], 0, 0),  # a search and an answer each, told and not
        (make_credit("igpo_ig_search"), [2 * (1 + N), 2 * 2], 2, 2),  # after: once for both
    ],
)
def test_only_what_a_method_reads_is_scored(
    episodes: list[Episode], credit: CreditAssignment, scored: list[int], gains: int, beliefs: int
) -> None:
    scorer = FakeScorer()
    engine = make_engine(QUESTIONS, FakeRetriever(), None, top_k=1, num_counterfactuals=N)
    settled = settle_for(credit, episodes, engine.information_gain, scorer)
    assert [len(call) for call in scorer.calls] == scored
    assert sum(gain is not None for e in settled for gain in e.information_gains) == gains
    assert sum(episode.prior_log_prob is not None for episode in settled) == beliefs
    assert [episode.question for episode in settled] == [PERU, ITALY]
