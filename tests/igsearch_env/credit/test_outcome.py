"""GRPO's group-normalised outcome against hand-computed numbers and plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import GRPO, RLOO, CreditAssignment, Reinforce
from igsearch_env.credit.groups import group_advantages
from tests.igsearch_env.credit import rollouts
from tests.igsearch_env.fakes import finished, policy_step


def rollout(outcome: float, group: str = "g", tokens: int = 3, failed: bool = False) -> Episode:
    step = policy_step("search", 0, tokens, search_step=0, retrieval_failed=failed)
    return finished(outcome, [step], group)


class TestByHand:
    def test_one_success_of_four(self) -> None:
        # Mean 1/4; unbiased variance (3 * 1/16 + 9/16) / 3 = 1/4, so the deviation is 1/2.
        advantages = group_advantages([rollout(r) for r in (1.0, 0.0, 0.0, 0.0)])
        assert advantages == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)

    def test_a_pair(self) -> None:
        # Mean 1/2; unbiased deviation 1/sqrt(2).
        advantages = group_advantages([rollout(0.0), rollout(1.0)])
        assert advantages == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], abs=1e-5)

    def test_epsilon(self) -> None:
        advantages = group_advantages([rollout(0.0), rollout(1.0)], epsilon=1.0)
        assert advantages[1] == pytest.approx(0.5 / (math.sqrt(0.5) + 1.0))

    def test_groups_do_not_mix(self) -> None:
        batch = [rollout(1.0, "a"), rollout(0.0, "b"), rollout(0.0, "a"), rollout(0.0, "b")]
        half = math.sqrt(0.5)
        assert group_advantages(batch) == pytest.approx([half, 0.0, -half, 0.0], abs=1e-5)

    @pytest.mark.parametrize("outcome", [0.0, 1.0, 0.1])
    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_equal_outcomes_and_lone_rollouts_get_nothing(self, outcome: float, size: int) -> None:
        assert group_advantages([rollout(outcome)] * size) == [0.0] * size

    def test_a_failed_rollout_counts_for_nobody(self) -> None:
        batch = [rollout(1.0), rollout(0.0), rollout(0.0, failed=True), rollout(1.0, failed=True)]
        half = math.sqrt(0.5)
        assert group_advantages(batch) == pytest.approx([half, -half, 0.0, 0.0], abs=1e-5)

    def test_one_left_beside_failed_ones_gets_nothing(self) -> None:
        batch = [rollout(1.0), rollout(0.0, failed=True)]
        assert group_advantages(batch) == [0.0, 0.0]

    def test_an_unfinished_episode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="question 'q-Peru' has no outcome yet"):
            group_advantages([rollout(1.0), replace(rollout(1.0), outcome=None)])

    def test_nothing(self) -> None:
        assert group_advantages([]) == []
        assert GRPO()([]) == []


def first_tokens(credit: CreditAssignment, batch: Sequence[Episode]) -> list[float]:
    return [float(array[0]) for array in credit(batch)]


class TestOtherBaselines:
    BATCH = (
        rollout(1.0, "a"),
        rollout(0.0, "a"),
        rollout(0.0, "a"),
        rollout(1.0, "b"),
        rollout(1.0, "a", failed=True),
    )

    def test_leave_one_out(self) -> None:
        # 1 against 0 and 0; 0 against 1 and 0; nobody to compare the fourth with.
        assert first_tokens(RLOO(), self.BATCH) == [1.0, -0.5, -0.5, 0.0, 0.0]

    def test_the_mean_of_the_batch(self) -> None:
        # Four count, mean 1/2, over both groups.
        assert first_tokens(Reinforce(), self.BATCH) == [0.5, -0.5, -0.5, 0.5, 0.0]

    @pytest.mark.parametrize("credit", [RLOO(), Reinforce()])
    def test_corners(self, credit: CreditAssignment) -> None:
        assert credit([]) == []
        assert first_tokens(credit, [rollout(1.0)]) == [0.0]
        assert first_tokens(credit, [rollout(1.0, failed=True)]) == [0.0]
        with pytest.raises(ValueError, match="has no outcome yet"):
            credit([replace(rollout(1.0), outcome=None)])


def slow_advantages(batch: Sequence[Episode]) -> list[float]:
    """(R - mean) / (std + 1e-6) over the group, std unbiased; failed rollouts left out."""
    result = []
    for episode in batch:
        outcomes = []
        for other in batch:
            if other.group_id == episode.group_id and not other.retrieval_failed:
                assert other.outcome is not None
                outcomes.append(other.outcome)
        if episode.retrieval_failed or len(outcomes) < 2 or episode.outcome is None:
            result.append(0.0)
            continue
        mean = math.fsum(outcomes) / len(outcomes)
        variance = math.fsum((r - mean) ** 2 for r in outcomes) / (len(outcomes) - 1)
        result.append((episode.outcome - mean) / (math.sqrt(variance) + 1e-6))
    return result


BATCHES = st.lists(
    st.builds(
        rollout,
        st.sampled_from([0.0, 1.0, 0.5, 0.1]),
        st.sampled_from("abc"),
        st.integers(0, 4),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(BATCHES | rollouts.batches())
def test_agrees_with_plain_loops(batch: list[Episode]) -> None:
    expected = slow_advantages(batch)
    assert group_advantages(batch) == pytest.approx(expected, abs=1e-6)
    arrays = GRPO()(batch)
    assert [array.shape for array in arrays] == [(episode.policy_tokens,) for episode in batch]
    for array, value in zip(arrays, expected, strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, value, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(BATCHES | rollouts.batches())
def test_other_baselines_agree_with_plain_loops(batch: list[Episode]) -> None:
    kept = [e for e in batch if not any(step.retrieval_failed for step in e.steps)]
    for episode, loo, mean in zip(batch, RLOO()(batch), Reinforce()(batch), strict=True):
        assert loo.shape == mean.shape == (episode.policy_tokens,)
        expected = [0.0, 0.0]
        if any(episode is one for one in kept):
            assert episode.outcome is not None
            others = []
            for other in kept:
                if other is not episode and other.group_id == episode.group_id:
                    others.append(other.outcome or 0.0)
            if others:
                expected[0] = episode.outcome - math.fsum(others) / len(others)
            expected[1] = episode.outcome - math.fsum(e.outcome or 0.0 for e in kept) / len(kept)
        np.testing.assert_allclose(loo, expected[0], atol=1e-9)
        np.testing.assert_allclose(mean, expected[1], atol=1e-9)


@settings(deadline=None)
@given(BATCHES)
def test_each_group_sums_to_zero(batch: list[Episode]) -> None:
    advantages = group_advantages(batch)
    for group in "abc":
        mine = [a for a, e in zip(advantages, batch, strict=True) if e.group_id == group]
        assert math.fsum(mine) == pytest.approx(0.0, abs=1e-9)


def test_every_policy_token_gets_it() -> None:
    steps = [
        policy_step("search", 0, 4, (1, 3), search_step=0, information_gain=9.0),
        policy_step("invalid", 4, 2),
        policy_step("answer", 6, 5),
    ]
    arrays = GRPO()([finished(1.0, steps), finished(0.0)])
    assert arrays[0] == pytest.approx(np.full(11, math.sqrt(0.5)), abs=1e-5)
    assert arrays[1].shape == (0,)  # a rollout without tokens
