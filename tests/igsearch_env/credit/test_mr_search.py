"""MR-Search's advantages of attempts: by hand and in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import RLOO, MRSearch
from tests.igsearch_env.credit.rollouts import batches, on_tokens, per_turn, rollout


def turns(credit: MRSearch, batch: Sequence[Episode]) -> list[list[float]]:
    return [per_turn(e, array) for e, array in zip(batch, credit(batch), strict=True)]


class TestByHand:
    # Wrong, wrong, right; right, wrong, wrong; right, and no further attempt.
    BATCH = (
        rollout("sa|a|sa", 1.0, attempts=[0.0, 0.0, 1.0]),
        rollout("a|a|a", 0.0, attempts=[1.0, 0.0, 0.0]),
        rollout("sa", 1.0, attempts=[1.0]),
    )
    # Attempt 0: 0 - 1, 1 - 1/2, 1 - 1/2. Attempt 1: 0, 0. Attempt 2: 1, -1.

    def test_later_attempts_count_for_earlier_ones(self) -> None:
        assert turns(MRSearch(), self.BATCH) == [
            [0.0, 0.0, 1.0, 1.0, 1.0],
            [-0.5, -1.0, -1.0],
            [0.5, 0.5],
        ]

    def test_discount(self) -> None:
        assert turns(MRSearch(gamma=0.5), self.BATCH) == [
            [-0.75, -0.75, 0.5, 1.0, 1.0],
            [0.25, -0.5, -1.0],
            [0.5, 0.5],
        ]
        assert turns(MRSearch(gamma=0.0), self.BATCH)[0] == [-1.0, -1.0, 0.0, 1.0, 1.0]

    def test_attempts_are_compared_with_the_same_attempt(self) -> None:
        # Over the last outcome alone, both rollouts would be alike.
        batch = [
            rollout("a|a", 1.0, attempts=[1.0, 1.0]),
            rollout("a|a", 1.0, attempts=[0.0, 1.0]),
        ]
        assert turns(MRSearch(), batch) == [[1.0, 0.0], [-1.0, 0.0]]

    def test_nothing_is_divided_by_a_deviation(self) -> None:
        batch = [rollout("a", r, attempts=[r]) for r in (1.0, 0.0, 0.0, 0.0)]
        assert turns(MRSearch(), batch)[0] == [1.0]

    def test_a_lone_attempt_gets_nothing(self) -> None:
        batch = [rollout("a|a", 1.0, attempts=[0.0, 1.0]), rollout("a", 1.0, attempts=[1.0])]
        assert turns(MRSearch(), batch) == [[-1.0, 0.0], [1.0]]

    def test_a_failed_rollout_counts_for_nobody(self) -> None:
        failed = rollout("sa", 1.0, failed=True, attempts=[1.0])
        with_it = turns(MRSearch(), [failed, *self.BATCH])
        assert with_it == [[0.0, 0.0], *turns(MRSearch(), self.BATCH)]

    def test_an_unfinished_episode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has no outcome yet"):
            MRSearch()([replace(rollout("sa"), outcome=None)])
        assert MRSearch()([]) == []

    @pytest.mark.parametrize("gamma", [-0.5, 1.5, math.nan])
    def test_gamma_out_of_range(self, gamma: float) -> None:
        with pytest.raises(ValueError, match="gamma must lie between 0 and 1"):
            MRSearch(gamma=gamma)


def slow_mr_search(batch: Sequence[Episode], gamma: float) -> list[list[float]]:
    """Attempt by attempt, nothing shared with the library."""

    def usable(episode: Episode) -> bool:
        return not any(step.retrieval_failed for step in episode.steps)

    def relative(episode: Episode, n: int) -> float:
        others = [
            other.attempt_outcomes[n]
            for other in batch
            if other is not episode
            and other.group_id == episode.group_id
            and usable(other)
            and len(other.attempt_outcomes) > n
        ]
        return episode.attempt_outcomes[n] - sum(others) / len(others) if others else 0.0

    result = []
    for episode in batch:
        values = []
        for step in episode.steps:
            value = 0.0
            for m in range(step.attempt, len(episode.attempt_outcomes)):
                value += gamma ** (m - step.attempt) * relative(episode, m)
            values.append(value if usable(episode) else 0.0)
        result.append(on_tokens(episode, values))
    return result


@settings(deadline=None, max_examples=60)
@given(batches(), st.sampled_from([0.0, 0.5, 1.0]))
def test_agrees_with_plain_loops(batch: list[Episode], gamma: float) -> None:
    arrays = MRSearch(gamma)(batch)
    assert [array.shape for array in arrays] == [(e.policy_tokens,) for e in batch]
    for array, tokens in zip(arrays, slow_mr_search(batch, gamma), strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, tokens, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(batches())
def test_with_one_attempt_it_is_rloo(batch: list[Episode]) -> None:
    batch = [
        replace(
            episode,
            attempt_outcomes=(),
            steps=tuple(replace(step, attempt=0, reflection=None) for step in episode.steps),
        )
        for episode in batch
    ]
    for mine, rloo in zip(MRSearch()(batch), RLOO()(batch), strict=True):
        np.testing.assert_array_equal(mine, rloo)
