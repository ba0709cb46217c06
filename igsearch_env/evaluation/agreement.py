"""How far two graders of the same answers agree, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.answers import percentile_interval


def cohen_kappa(both: float, first: float, second: float, neither: float) -> float | None:
    """Cohen's kappa of two graders: agreement beyond what chance would give.

    It is (p_o - p_e) / (1 - p_e), with p_o the share on which they agree and p_e the share on which
    graders would who say "right" as often, each on their own (Cohen 1960).

    Args:
        both: Answers that both take for right.
        first: Those that the first one alone takes for right.
        second: Those that the second one alone does.
        neither: Those that both take for wrong.

    Returns:
        At most 1, and 0 for the agreement of chance; None where both say the same of every answer,
        so that chance agrees always.

    Raises:
        ValueError: If there are no answers.

    >>> cohen_kappa(20, 5, 10, 15)
    0.4
    """
    n = both + first + second + neither
    if n <= 0:
        raise ValueError("kappa needs at least one answer")
    (value,) = _kappas(np.array([[both, first, second, neither]], dtype=np.float64))
    return None if np.isnan(value) else round(float(value), 12)


def _kappas(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each row of cells, shape (rows, 4); NaN where it is not defined."""
    both, first, second, neither = (cells / cells.sum(axis=1, keepdims=True)).T
    observed = both + neither
    yes_1, yes_2 = both + first, both + second
    expected = yes_1 * yes_2 + (1 - yes_1) * (1 - yes_2)
    rest = 1 - expected
    kappas = np.full(len(cells), np.nan)
    np.divide(observed - expected, rest, kappas, where=rest > 1e-12)
    return kappas


def agreement(
    first: Sequence[bool],
    second: Sequence[bool],
    groups: Sequence[str] | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> dict[str, Any]:
    """How far two graders agree.

    Args:
        first: What one says of each answer.
        second: What the other says.
        groups: The question of each answer: the answers of one question are resampled together.
            None where each has its own.
        seed: Seed of the bootstrap.
        samples: Number of resamples.

    Returns:
        ``n`` answers of ``questions``; how many ``both`` take for right, each alone (``first``,
        ``second``), or ``neither``; ``accuracy``, the share on which they agree, and ``kappa``,
        each with ``_interval``, the 95 % bootstrap interval. Kappa and its interval are None where
        they are not defined.

    Raises:
        ValueError: If there are no answers, or the lists differ in length.

    >>> found = agreement([True, True, False, False], [True, False, False, False])
    >>> found["accuracy"], found["kappa"]
    (0.75, 0.5)
    """
    if not first or len(first) != len(second):
        raise ValueError(
            "agreement needs two lists of as many grades, at least one, got "
            f"{len(first)} and {len(second)}"
        )
    names = [str(i) for i in range(len(first))] if groups is None else groups
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    table = np.zeros((len(places), 4))  # one row per question
    for name, one, other in zip(names, first, second, strict=True):
        table[places[name], 2 * (not one) + (not other)] += 1
    both, alone, other_alone, neither = table.sum(axis=0)
    rng = np.random.default_rng(seed)
    share = np.full(len(places), 1 / len(places))
    rows = max(1, 1_000_000 // len(places))  # a draw holds about a million counts
    drawn = [
        rng.multinomial(len(places), share, size=min(rows, samples - start)) @ table
        for start in range(0, samples, rows)
    ]
    cells = np.concatenate(drawn)  # (samples, 4)
    kappas = _kappas(cells)
    known = kappas[~np.isnan(kappas)]
    return {
        "n": len(first),
        "questions": len(places),
        "both": int(both),
        "first": int(alone),
        "second": int(other_alone),
        "neither": int(neither),
        "accuracy": float((both + neither) / len(first)),
        "accuracy_interval": list(
            percentile_interval((cells[:, 0] + cells[:, 3]) / cells.sum(axis=1))
        ),
        "kappa": cohen_kappa(both, alone, other_alone, neither),
        "kappa_interval": list(percentile_interval(known)) if known.size else None,
    }
