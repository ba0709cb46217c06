"""How this process uses memory: what is freed, and garbage collection."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LIMITS = (1 << 30, 32 << 20)  # bytes; older versions refuse more than 32 MiB
_LARGE = 4 << 20
_kept: list[int] = []  # the largest blocks that are kept now, once that is set


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks for the next use, where glibc is the C library.

    Torch takes and frees the same large temporaries in every layer on a CPU; given back to the
    system each time, their pages are zeroed and mapped again at each use, which can cost as much
    as the arithmetic. What the process holds does not shrink then, and grows where no hole is large
    enough for the next block: see :func:`give_back_freed_memory` and
    :func:`large_blocks_given_back`.

    Returns:
        Whether it took effect.
    """
    taken = next((limit for limit in _LIMITS if _set(_M_MMAP_THRESHOLD, limit)), None)
    if taken is None:
        return False
    _kept[:] = [taken]
    return any(_set(_M_TRIM_THRESHOLD, limit) for limit in _LIMITS)


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Give large blocks back as soon as they are freed, until the block ends.

    An update keeps activations of every layer between temporaries of many sizes, which leaves holes
    that the next batch does not fit: with SmolLM2 it took up to a quarter more memory than with
    this. Its batches are so large that mapping them anew costs nothing beside their arithmetic;
    sampling maps some for every token, and took a third more time. Nothing changes in a process
    that does not keep freed memory.
    """
    if not _kept:
        yield
        return
    before = _kept[0]
    _kept[0] = _LARGE
    _set(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        _kept[0] = before
        _set(_M_MMAP_THRESHOLD, before)


def _set(option: int, limit: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, limit))  # another C library has none


def give_back_freed_memory(above: int = 1 << 30) -> bool:
    """Give freed blocks back to the system, if malloc keeps more than this of them.

    Call it between the parts of a step. Rollouts, scoring and update take blocks of other sizes
    each, so the heap of a model of 135 M parameters grew to 14 GB in twelve steps without it.

    Args:
        above: Bytes that malloc may keep.

    Returns:
        Whether anything was given back.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    trim, info = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    if trim is None or info is None:  # another C library, or glibc before 2.33
        return False
    info.restype = _MallocInfo
    return info().fordblks > above and bool(trim(0))


class _MallocInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``; ``fordblks`` is what is free and kept."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


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
