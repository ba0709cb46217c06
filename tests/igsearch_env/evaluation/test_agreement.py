"""Agreement of two graders: by hand, against plain loops, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env.evaluation.agreement import agreement, cohen_kappa


def slow_kappa(first: list[bool], second: list[bool]) -> float | None:
    """From the definition, over every answer and every pair of answers."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    by_chance = sum(a == b for a in first for b in second) / n**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # Agree on 35 of 50; both say "right" with 25/50 and 30/50: chance agrees on 1/2.
        ((20, 5, 10, 15), (0.7 - 0.5) / 0.5),
        ((10, 0, 0, 10), 1.0),
        ((0, 10, 10, 0), -1.0),
        ((25, 25, 25, 25), 0.0),
        ((10, 0, 0, 0), None),
        ((9, 1, 0, 0), 0.0),  # one that says "right" of everything agrees as chance does
    ],
)
def test_kappa_by_hand(cells: tuple[int, int, int, int], expected: float | None) -> None:
    found = cohen_kappa(*cells)
    assert found == (None if expected is None else pytest.approx(expected))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_against_plain_loops(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = agreement(first, second, samples=50)
    expected = slow_kappa(first, second)
    assert found["kappa"] == (None if expected is None else pytest.approx(expected, abs=1e-9))
    assert found["accuracy"] == pytest.approx(np.mean(np.array(first) == np.array(second)))
    counts = [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]  # type: ignore[comparison-overlap]
    assert [found[name] for name in ("both", "first", "second", "neither")] == counts
    low, high = found["accuracy_interval"]
    assert 0 <= low <= high <= 1
    assert agreement(second, first, samples=50)["kappa"] == found["kappa"]


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    first = [bool(x) for x in rng.random(200) < 0.6]
    second = [bool(x) if y else not x for x, y in zip(first, rng.random(200) < 0.8, strict=True)]
    found = agreement(first, second, samples=4000)
    kappas, shares = [], []
    for _ in range(1000):
        at = rng.integers(200, size=200)
        one, other = [first[i] for i in at], [second[i] for i in at]
        shares.append(np.mean(np.array(one) == np.array(other)))
        cells = [sum((a, b) == c for a, b in zip(one, other, strict=True)) for c in CELLS]
        kappas.append(cohen_kappa(*cells))
    for name, values in (("accuracy", shares), ("kappa", kappas)):
        expected = np.quantile(np.array(values, dtype=float), [0.025, 0.975])
        assert found[f"{name}_interval"] == pytest.approx(expected.tolist(), abs=0.03)


CELLS = ((True, True), (True, False), (False, True), (False, False))


def test_answers_of_one_question_are_resampled_together() -> None:
    first = [True, True, False, False] * 10
    second = [True, False, False, True] * 10
    groups = [f"q{i // 4 % 5}" for i in range(40)]  # every question has as many of each kind
    together = agreement(first, second, groups)
    assert (together["n"], together["questions"]) == (40, 5)
    assert together["accuracy_interval"] == [0.5, 0.5]
    apart = agreement(first, second)
    assert apart["questions"] == 40
    assert apart["accuracy_interval"][0] < 0.5 < apart["accuracy_interval"][1]


def test_where_it_is_not_defined() -> None:
    found = agreement([True, True], [True, True])
    assert (found["kappa"], found["kappa_interval"], found["accuracy"]) == (None, None, 1.0)
    with pytest.raises(ValueError, match="as many grades, at least one, got 1 and 2"):
        agreement([True], [True, False])
    with pytest.raises(ValueError, match="as many grades"):
        agreement([], [])
    with pytest.raises(ValueError, match="at least one answer"):
        cohen_kappa(0, 0, 0, 0)
