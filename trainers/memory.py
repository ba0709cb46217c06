"""How this process uses memory: what is freed, and garbage collection."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LIMITS = (1 << 30, 32 << 20)  # bytes; older versions refuse more than 32 MiB


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks for the next use, where glibc is the C library.

    Torch takes and frees the same large temporaries in every layer on a CPU; given back to the
    system each time, their pages are zeroed and mapped again at each use, which can cost as much
    as the arithmetic. What the process holds does not shrink then.

    Returns:
        Whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all(
        any(mallopt(option, limit) for limit in _LIMITS)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Keep what exists now from the garbage collector, until the block ends.

    Corpus, index and model are hundreds of thousands of objects that stay; looking through them
    again and again is 2 % of a training step of the demo.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
