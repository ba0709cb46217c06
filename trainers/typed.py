"""Dataclasses from nested dictionaries, with types and ranges checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

import dacite

T = TypeVar("T")


def build(kind: type[T], data: dict[str, Any], prefix: str = "") -> T:
    """Build a dataclass from a dictionary.

    Args:
        kind: The dataclass.
        data: Its fields.
        prefix: What stands before the names of fields in messages.

    Raises:
        ValueError: If a key is missing, unknown or of the wrong type.
    """
    try:
        return dacite.from_dict(kind, data, _RULES)
    except dacite.WrongTypeError as error:
        raise ValueError(
            f"{prefix}{error.field_path} must be {_name(error.field_type)}, got {error.value!r}"
        ) from error
    except dacite.MissingValueError as error:
        raise ValueError(f"{prefix}{error.field_path} is missing") from error
    except dacite.UnexpectedDataError as error:
        raise ValueError(f"unknown settings: {', '.join(sorted(error.keys))}") from error


def check_range(
    section: str,
    settings: object,
    names: Sequence[str],
    *,
    least: float = -math.inf,
    above: float = -math.inf,
) -> None:
    """Refuse numbers out of range; NaN is out of every range.

    Args:
        section: What stands before the names in messages.
        settings: Where the numbers are.
        names: Names of attributes.
        least: The lowest number allowed.
        above: What a number must lie above.

    Raises:
        ValueError: If one is out of range.
    """
    for name in names:
        value = getattr(settings, name)
        if not (value >= least and value > above):
            wanted = f"at least {least}" if above == -math.inf else f"above {above}"
            raise ValueError(f"{section}.{name} must be {wanted}, got {value}")


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise dacite.WrongTypeError(int, value)
    return value


def _float(value: Any) -> Any:
    if isinstance(value, bool):
        raise dacite.WrongTypeError(float, value)
    return float(value) if isinstance(value, int) else value


def _tuple(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise dacite.WrongTypeError(tuple[int, ...], value)
    return tuple(value)


def _table(value: Any) -> Any:
    if not isinstance(value, dict):
        raise dacite.WrongTypeError(dict, value)
    return value


_RULES = dacite.Config(
    strict=True,
    type_hooks={
        int: _whole,
        float: _float,
        tuple[int, ...]: _tuple,
        tuple[str, ...]: _tuple,
        dict[str, Any]: _table,
    },
)


def _name(expected: Any) -> str:
    """How to speak of a type: ``int``, ``Literal['em', 'f1']``, ``a section``."""
    if expected is dict or is_dataclass(expected):
        return "a section"
    name = expected.__name__ if isinstance(expected, type) else str(expected)
    return name.replace("typing.", "")
