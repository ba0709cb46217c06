"""PBSD: by hand, and against plain loops over the tokens of ragged batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import GRPO, PBSD
from tests.igsearch_env.credit import rollouts
from tests.igsearch_env.credit.test_outcome import slow_advantages


def shifted(episode: Episode, *shifts: float | None) -> Episode:
    steps = zip(episode.steps, shifts, strict=True)
    return replace(
        episode, steps=tuple(replace(step, hindsight_shift=value) for step, value in steps)
    )


def test_a_success_goes_to_the_turns_that_the_answer_makes_probable_and_a_failure_away() -> None:
    good = shifted(rollouts.rollout("sa", 1.0, tokens=[1, 3]), math.log(2), 0.0)
    bad = shifted(rollouts.rollout("ssa", 0.0, tokens=[1, 1, 1]), math.log(2), None, -math.log(4))
    # Two rollouts, outcomes 1 and 0: advantages of 1 / sqrt(2) and the opposite.
    advantage = 0.5 / (math.sqrt(0.5) + 1e-6)
    first, second = PBSD(limit=9.0, baseline="none")([good, bad])
    assert first.tolist() == pytest.approx([advantage * w / 1.25 for w in (2, 1, 1, 1)])
    mean = (1 / 2 + 1 + 4) / 3
    assert second.tolist() == pytest.approx([-advantage * w / mean for w in (1 / 2, 1, 4)])


def test_a_shift_counts_up_to_the_limit() -> None:
    batch = [
        shifted(rollouts.rollout("sa", 1.0, tokens=1), 5.0, -5.0),
        shifted(rollouts.rollout("sa", 0.0, tokens=1), 5.0, -5.0),
    ]
    first, second = PBSD(limit=math.log(3), baseline="none")(batch)
    assert first[0] / first[1] == pytest.approx(9.0)
    assert second[1] / second[0] == pytest.approx(9.0)


def test_the_calls_of_a_turn_share_its_weight() -> None:
    episode = rollouts.rollout("ssa", 1.0, tokens=1)
    steps = (episode.steps[0], replace(episode.steps[1], call=1), episode.steps[2])
    batch = [
        shifted(replace(episode, steps=steps), None, math.log(2), 0.0),
        rollouts.rollout("a", 0.0),
    ]
    first, _ = PBSD(limit=9.0, baseline="none")(batch)
    assert first[0] == first[1] == pytest.approx(2 * first[2])


def test_a_shift_that_all_siblings_have_says_nothing() -> None:
    batch = [
        shifted(rollouts.rollout("sa", 1.0, tokens=1), -1.5, math.log(2)),
        shifted(rollouts.rollout("sa", 0.0, tokens=1), -1.5, 0.0),
        shifted(rollouts.rollout("ssa", 0.0, tokens=1), -1.5, None, -3.0),
    ]
    first, second, third = PBSD(limit=9.0)(batch)
    # The first turns are alike. ln 2 is compared with the one sibling that has a second shift, and
    # that with it; the third turn of the last rollout has no sibling.
    assert first[1] / first[0] == pytest.approx(2.0)
    assert second[1] / second[0] == pytest.approx(2.0)
    assert third.tolist() == pytest.approx([third[0]] * 3)


def test_without_a_limit_above_0_it_is_grpo_and_so_is_a_group_that_ends_alike() -> None:
    mixed = [rollouts.rollout("sa", 1.0), rollouts.rollout("ssa", 0.0)]
    alike = [rollouts.rollout("sa", 0.0), rollouts.rollout("ssa", 0.0)]
    for credit, batch in ((PBSD(limit=0.0), mixed), (PBSD(), alike)):
        for mine, grpo in zip(credit(batch), GRPO()(batch), strict=True):
            np.testing.assert_array_equal(mine, grpo)


def test_shifts_that_were_not_computed_are_refused() -> None:
    batch = [shifted(rollouts.rollout("sa", 1.0), None, None)]
    with pytest.raises(ValueError, match=r"call igsearch_env\.gain\.hindsight\.settle_hindsight"):
        PBSD()(batch)
    failed = [replace(batch[0], outcome=None, unscored=True)]
    assert not PBSD()(failed)[0].any()  # nobody computes them for rollouts that are left out
    with pytest.raises(ValueError, match="baseline must be"):
        PBSD(baseline="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-0.1, math.inf, math.nan, "1"])
def test_a_limit_out_of_range_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="limit must be a finite number of at least 0"):
        PBSD(limit=limit)


@settings(deadline=None)
@given(rollouts.batches(), st.sampled_from([0.0, 0.2, 5.0]), st.booleans())
def test_the_same_in_plain_loops_and_each_rollout_keeps_its_sum(
    batch: list[Episode], limit: float, siblings: bool
) -> None:
    credit = PBSD(limit=limit, baseline="siblings" if siblings else "none")
    for episode, array, advantage in zip(batch, credit(batch), slow_advantages(batch), strict=True):
        weights = []
        for token in range(episode.policy_tokens):
            (step,) = (
                s for s in episode.steps if s.policy_tokens.start <= token < s.policy_tokens.stop
            )
            shift = step.hindsight_shift or 0.0
            if siblings:
                place = episode.steps.index(step)
                others = [
                    other.steps[place].hindsight_shift or 0.0
                    for other in batch
                    if other is not episode
                    and other.group_id == episode.group_id
                    and not other.left_out
                    and place < len(other.steps)
                ]
                shift -= sum(others) / len(others) if others else shift
            shift = max(-limit, min(limit, shift))
            weights.append(math.exp(shift if advantage >= 0 else -shift))
        mean = sum(weights) / len(weights) if weights else 1.0
        expected = [advantage * weight / mean for weight in weights]
        assert array.tolist() == pytest.approx(expected, abs=1e-9)
        tokens = episode.policy_tokens  # each of whose advantages may be off by 1e-9
        assert array.sum() == pytest.approx(advantage * tokens, abs=1e-9 * max(tokens, 1))
