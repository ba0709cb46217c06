"""The registry of credit assignment methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Episode

CreditAssignment = Callable[[Sequence[Episode]], list[NDArray[np.float64]]]
"""Maps finished episodes to one array of shape (policy tokens,) each."""

CREDIT: dict[str, Callable[..., CreditAssignment]] = {}
"""The methods by name; :func:`register_credit` adds to it."""


T = TypeVar("T", bound=Callable[..., CreditAssignment])


def register_credit(name: str) -> Callable[[T], T]:
    """Class decorator that makes a method known by ``name``.

    Raises:
        ValueError: If the name is taken.
    """

    def register(method: T) -> T:
        if name in CREDIT:
            raise ValueError(f"a credit method named {name!r} exists already; choose another name")
        CREDIT[name] = method
        return method

    return register


def make_credit(name: str, **options: Any) -> CreditAssignment:
    """Build a method by name.

    Args:
        name: A name in :data:`CREDIT`.
        **options: The fields of the method's dataclass.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If an option is unknown.
    """
    if name not in CREDIT:
        raise ValueError(f"unknown credit method {name!r}; known are {', '.join(sorted(CREDIT))}")
    return CREDIT[name](**options)


def credit_at(credit: CreditAssignment, progress: float) -> CreditAssignment:
    """The method as it is at a point of training: ``credit.at(progress)`` if it has that.

    A method whose options change over training has a method ``at``; trainers call this each step.

    Args:
        credit: The method as it was built.
        progress: From 0.0 (the first step) to 1.0 (the last).

    Raises:
        ValueError: If ``progress`` is out of range.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie between 0 and 1, got {progress!r}")
    at: Callable[[float], CreditAssignment] | None = getattr(credit, "at", None)
    return credit if at is None else at(progress)
