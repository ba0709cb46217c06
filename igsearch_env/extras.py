"""Packages that only some installations have."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: Full name of the module.
        extra: The extra of igsearch-env that installs it.

    Raises:
        ImportError: If it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{module} is needed here ({error}): pip install "igsearch-env[{extra}]"'
        ) from error


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports at the head of a module that is of no use without an extra.

    Raises:
        ImportError: If one of them is not installed; the message says how to get it.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error.name or 'a package'} is needed here ({error}): "
            f'pip install "igsearch-env[{name}]"'
        ) from error
