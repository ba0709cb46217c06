"""Hindsight from siblings: bonuses by hand, and against a count over one document at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import GRPO, SilverRollouts
from tests.igsearch_env.credit.test_controls import searching
from tests.igsearch_env.credit.test_ig_options import bonuses

CREDIT = SilverRollouts(alpha=1.0, normalizer="none")


def test_a_document_is_worth_what_it_was_to_the_siblings() -> None:
    batch = [
        searching("ab", "c", outcome=1.0),
        searching("a", "ax", outcome=1.0),
        searching("b", "ab", outcome=0.0),
        searching("x", outcome=0.0),
    ]
    # a: found by one of one other success, and by one of two failures; b by none of one and half.
    # c by nobody else.
    assert bonuses(CREDIT, batch)[0] == [0.5, 0.0]
    # a by one of one and by half; then x, new, by none and by half: never below 0.
    assert bonuses(CREDIT, batch)[1] == [0.5, 0.0]
    # b by half of the successes and none of one failure; then a, new, by both successes.
    assert bonuses(CREDIT, batch)[2] == [0.5, 1.0]
    # x by half of the successes and by no other failure.
    assert bonuses(CREDIT, batch)[3] == [0.5]


def test_a_copy_under_another_id_is_the_same_document() -> None:
    batch = [
        searching("a", "A", outcome=1.0),
        searching("A", outcome=1.0),
        searching("x", outcome=0.0),
    ]
    # The first finds what the other success found, once; so does the second.
    assert bonuses(CREDIT, batch) == [[1.0, 0.0], [1.0], [0.0]]


def test_a_search_is_not_paid_for_its_own_success() -> None:
    batch = [searching("a", outcome=1.0), searching("b", outcome=0.0)]
    assert bonuses(CREDIT, batch) == [[0.0], [0.0]]


def test_without_a_success_it_is_grpo() -> None:
    batch = [searching("a", outcome=0.0), searching("a", "b", outcome=0.0)]
    for mine, grpo in zip(CREDIT(batch), GRPO()(batch), strict=True):
        np.testing.assert_array_equal(mine, grpo)


ROLLOUTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", "c", "ab", "ca", "abc"]), max_size=3),
        st.sampled_from([0.0, 1.0, 0.4]),
        st.sampled_from(["g", "h"]),
    ),
    min_size=1,
    max_size=6,
)


@given(ROLLOUTS)
def test_it_equals_a_count_over_one_document_at_a_time(
    rollouts: Sequence[tuple[list[str], float, str]],
) -> None:
    batch = [
        replace(searching(*found, outcome=outcome), group_id=group)
        for found, outcome, group in rollouts
    ]
    assert CREDIT.signals(batch) == [_slow(batch, rollouts, i) for i in range(len(batch))]


def _slow(
    batch: Sequence[Episode], rollouts: Sequence[tuple[list[str], float, str]], i: int
) -> list[float]:
    values = []
    for number, letters in enumerate(rollouts[i][0]):
        best = 0.0
        for letter in letters:
            if any(letter in earlier for earlier in rollouts[i][0][:number]):
                continue
            counts = {True: [0, 0], False: [0, 0]}  # found it, all; by whether it succeeded
            for k, (found, outcome, group) in enumerate(rollouts):
                if k != i and group == rollouts[i][2]:
                    counts[outcome > 0][0] += letter in "".join(found)
                    counts[outcome > 0][1] += 1
            good, bad = (n / all_ if all_ else 0.0 for n, all_ in (counts[True], counts[False]))
            best = max(best, good - bad)
        values.append(best)
    return values
