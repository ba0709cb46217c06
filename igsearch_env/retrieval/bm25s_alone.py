"""bm25s, imported so that it leaves the GPU to the policy.

When it is imported, bm25s runs a top-k with JAX if it finds it. A JAX with CUDA then takes three
quarters of the GPU's memory for itself. The retriever here needs no JAX: it is hidden meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let ``import name`` fail, unless it has been imported already."""
    if name in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]


with _hidden("jax"):
    import bm25s

__all__ = ["bm25s"]
