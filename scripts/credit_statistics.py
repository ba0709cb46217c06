"""Paired comparisons of a few seeds: t intervals, exact sign-flip tests, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats


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


def sign_flip_test(differences: Sequence[float]) -> float:
    """Exact two-sided p-value of a mean of paired differences under random signs.

    All 2^n assignments of signs are counted; with n pairs it is at least 2 / 2^n.

    >>> sign_flip_test([1.0, 2.0, 3.0, 4.0])
    0.125
    """
    sample = np.asarray(differences, dtype=np.float64)
    if sample.size > 20:
        raise ValueError(f"expected at most 20 pairs (2^20 assignments), got {sample.size}")
    flips = (np.arange(2**sample.size)[:, None] >> np.arange(sample.size)) & 1  # (2^n, n)
    means = np.abs(((1 - 2 * flips) * sample).mean(axis=1))
    return float(np.mean(means >= abs(float(sample.mean())) - 1e-12))


def holm(p_values: Mapping[str, float], tests: int = 0) -> dict[str, float]:
    """Holm's step-down adjustment of several tests' p-values.

    Args:
        p_values: By test.
        tests: How many tests there are; more than ``p_values`` if some are yet to come, which then
            count as the larger ones, so that nothing is called significant too early.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    least, count = 0.0, max(tests, len(p_values))
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (count - rank) * p))
        adjusted[name] = least
    return adjusted
