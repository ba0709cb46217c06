"""bm25s, imported so that it leaves the GPU to the policy.

When it is imported, bm25s runs a top-k with JAX if it finds it. A JAX with CUDA then takes three
quarters of the GPU's memory for itself. The retriever here needs no JAX: it is hidden meanwhile, so
bm25s has no JAX backend in this process, unless it was imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let ``import name`` fail, even if it has been imported before; it is put back."""
    modules: dict[str, Any] = sys.modules
    before = modules.get(name)
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]
        if before is not None:
            modules[name] = before


with _hidden("jax"):
    import bm25s

__all__ = ["bm25s"]
