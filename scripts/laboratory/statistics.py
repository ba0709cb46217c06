"""Paired comparisons of a few seeds: t intervals, exact sign-flip tests, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Key = TypeVar("Key")


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and two-sided t interval; the bounds are NaN for fewer than two values.

    >>> mean, low, high = t_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, sample.size - 1) * stats.sem(sample))
    return mean, mean - half, mean + half


def share_interval(
    parts: Sequence[float], wholes: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Sum of the parts over that of the wholes, with a paired bootstrap interval.

    Pairs are drawn again 10,000 times, always the same ones; a draw whose wholes do not add up to
    more than 0 bounds nothing. The bounds are NaN for fewer than two pairs, and all three numbers
    where the wholes themselves do not.

    >>> [round(value, 2) for value in share_interval([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])]
    [0.5, 0.5, 0.5]
    """
    part, whole = (np.asarray(values, dtype=np.float64) for values in (parts, wholes))
    nan = float("nan")
    if not whole.sum() > 0:
        return nan, nan, nan
    share = float(part.sum() / whole.sum())
    if part.size < 2:
        return share, nan, nan
    drawn = np.random.default_rng(0).integers(0, part.size, (10_000, part.size))
    sums = whole[drawn].sum(axis=1)
    shares = part[drawn].sum(axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return share, float(low), float(high)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Exact two-sided p-value of a mean of paired differences under random signs.

    All 2^n assignments of signs are counted; with n pairs it is at least 2 / 2^n. The sums of
    either half of the pairs are listed, and matched by a binary search.

    >>> sign_flip_test([1.0, 2.0, 3.0, 4.0])
    0.125
    """
    sample = np.asarray(differences, dtype=np.float64)
    if sample.size > 40:
        raise ValueError(f"expected at most 40 pairs (2^40 assignments), got {sample.size}")
    extreme = abs(float(sample.sum())) - 1e-9
    left, right = (_signed_sums(part) for part in np.array_split(sample, 2))
    right.sort()
    above = right.size - np.searchsorted(right, extreme - left, side="left")
    below = np.searchsorted(right, -extreme - left, side="right")
    return min(1.0, float((above + below).sum()) / (left.size * right.size))


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the values under each assignment of signs, shape (2^n,)."""
    signs = 1 - 2 * ((np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1)
    sums: NDArray[np.float64] = signs @ values
    return sums


def holm(p_values: Mapping[Key, float], tests: int = 0) -> dict[Key, float]:
    """Holm's step-down adjustment of several tests' p-values.

    Args:
        p_values: By test.
        tests: How many tests there are; more than ``p_values`` if some are yet to come, which then
            count as the larger ones, so that nothing is called significant too early.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[Key, float] = {}
    least, count = 0.0, max(tests, len(p_values))
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (count - rank) * p))
        adjusted[name] = least
    return adjusted
