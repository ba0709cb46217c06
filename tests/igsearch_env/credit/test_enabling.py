"""Enabling credit: by hand, and against plain loops on ragged batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import Enabling, IGSearch
from tests.igsearch_env.credit.test_ig_options import bonuses
from tests.igsearch_env.credit.test_ig_search import PLAIN, batches, episode_of
from tests.igsearch_env.credit.test_outcome import slow_advantages


def enabling(episode: Episode, *values: float | None) -> Episode:
    given_ = iter(values)
    steps = [
        replace(step, enabling=next(given_)) if step.action == "search" else step
        for step in episode.steps
    ]
    return replace(episode, steps=tuple(steps))


def plain(**options: float) -> Enabling:
    return Enabling(alpha=1.0, shaping=PLAIN, normalizer="none", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gains", "values", "share", "expected"),
    [
        # 2; .1 + .5 * 2; -.2 + 1 * 1.1, since more than a nat counts as one; less what was handed
        # back.
        ((-0.2, 0.1, 2.0), (3.0, 0.5, None), 1.0, [0.9, 0.0, 1.0]),
        ((-0.2, 0.1, 2.0), (3.0, 0.5, None), 0.5, [0.1, 0.3, 1.5]),
        # What made a bad search likely is not punished for it, and luck after a miss is not its.
        ((0.3, -1.0), (1.0, None), 1.0, [0.3, -1.0]),
        ((0.3, 2.0), (-1.0, None), 1.0, [0.3, 2.0]),
        ((0.3, 2.0), (None, None), 1.0, [0.3, 2.0]),
        ((0.3, 2.0), (1.0, None), 0.0, [0.3, 2.0]),
    ],
)
def test_by_hand(
    gains: Sequence[float],
    values: Sequence[float | None],
    share: float,
    expected: list[float],
) -> None:
    batch = [enabling(episode_of(0.0, *((1, gain) for gain in gains)), *values)]
    assert bonuses(plain(share=share), batch) == [pytest.approx(expected)]


def test_gains_are_shaped_before_they_are_handed_back() -> None:
    batch = [enabling(episode_of(0.0, (1, 0.05), (1, 2.0)), 1.0, None)]
    credit = replace(plain(), shaping=replace(PLAIN, dead_zone=0.1))
    assert bonuses(credit, batch) == [[1.0, 1.0]]


def test_without_values_it_is_ig_search() -> None:
    batch = [episode_of(1.0, (2, 1.0), (1, 0.5)), episode_of(0.0, (3, -0.4))]
    for mine, theirs in zip(Enabling()(batch), IGSearch()(batch), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        Enabling(share=share)


def test_a_gain_is_paid_once_however_long_the_chain() -> None:
    chain = enabling(episode_of(0.0, *[(1, 0.0)] * 5, (1, 2.0)), *[1.0] * 5, None)
    (paid,) = bonuses(plain(share=1.0), [chain])
    assert sum(paid) == pytest.approx(2.0)


def worth(episode: Episode, t: int) -> float:
    step = episode.searches[t]
    gain = step.information_gain or 0.0
    if t + 1 == len(episode.searches):
        return gain
    enabled = min(max(step.enabling or 0.0, 0.0), 1.0)
    return gain + 0.7 * enabled * max(worth(episode, t + 1), 0.0)


def handed(episode: Episode, t: int) -> float:
    """What search t gives to the one before it."""
    if t == 0:
        return 0.0
    enabled = min(max(episode.searches[t - 1].enabling or 0.0, 0.0), 1.0)
    return 0.7 * enabled * max(worth(episode, t), 0.0)


@settings(deadline=None, max_examples=60)
@given(batches(), st.data())
def test_agrees_with_plain_loops(batch: list[Episode], data: st.DataObject) -> None:
    number = st.one_of(st.none(), st.floats(-2, 2))
    batch = [enabling(e, *(data.draw(number) for _ in e.searches)) for e in batch]
    credit = plain(share=0.7)
    for episode, array, base in zip(batch, credit(batch), slow_advantages(batch), strict=True):
        expected = [base] * episode.policy_tokens
        for t, step in enumerate(episode.searches):
            found = step.documents or step.information_gain is not None
            if found and not episode.retrieval_failed:
                for p in range(step.query_tokens.start, step.query_tokens.stop):
                    expected[p] += worth(episode, t) - handed(episode, t)
        np.testing.assert_allclose(array, expected, atol=1e-9)
