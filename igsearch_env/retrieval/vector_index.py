"""FAISS: vectors in an index of any kind that a factory string describes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from igsearch_env.extras import import_extra
from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.index_directory import CorruptIndexError

VECTORS = "vectors.faiss"
_TRAINING_LEAST = 65_536
_TRAINING_PER_LIST = 64
_BLOCK = 16_384
_MULTIPLY_FROM = 1_024
"""Queries times dimension, per thread, from which a matrix product is the faster way."""


def import_faiss() -> Any:
    """FAISS, set to compare batches of queries with all vectors by a matrix product.

    Since 1.15 it does so from 128,000 numbers in a batch, however few threads there are. On one
    thread the product is ahead from about 1,000 (github.com/facebookresearch/faiss/pull/5109): 64
    queries of 384 numbers come out 10 times as fast.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
    """
    faiss = import_extra("faiss", "dense")
    if faiss.cvar.distance_compute_blas_threshold > 1_000:  # before, it was a number of queries
        numbers = min(128_000, _MULTIPLY_FROM * faiss.omp_get_max_threads())
        faiss.cvar.distance_compute_blas_threshold = numbers
    return faiss


def build_vector_index(
    blocks: Callable[[], Iterable[Vectors]],
    count: int,
    factory: str,
    advance: Callable[[int], None] = lambda added: None,
) -> Any:
    """Put vectors into a new index, which ranks by inner product.

    The same vectors give the same index, byte for byte; with HNSW only on a single thread.

    Args:
        blocks: Yields all vectors in order, in blocks of shape (some, dimension); called twice if
            the index has to be trained.
        count: How many vectors there are.
        factory: What FAISS's ``index_factory`` takes: ``"Flat"`` is exact, ``"IVF4096,Flat"`` looks
            into some of 4,096 lists, ``"HNSW32"`` walks a graph, ``"IVF4096,PQ48"`` keeps 48 bytes
            a vector.
        advance: Called with how many vectors were added since its last call.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
        ValueError: If FAISS does not take the factory string, or there are too few vectors for it.
    """
    index = empty_vector_index(next(iter(blocks())).shape[1], factory)
    if not index.is_trained:
        sample = _sample(blocks(), count, factory)
        try:
            index.train(sample)
        except RuntimeError as error:
            raise ValueError(
                f"{len(sample):,} vectors are too few to train an index {factory!r}; choose a "
                f"factory string with fewer lists or bits ({_reason(error)})"
            ) from error
    for block in blocks():
        for start in range(0, len(block), _BLOCK):
            part = np.ascontiguousarray(block[start : start + _BLOCK])
            index.add(part)
            advance(len(part))
    return index


def empty_vector_index(dimension: int, factory: str, search: str = "") -> Any:
    """An index without vectors.

    Args:
        dimension: Length of the vectors.
        factory: See :func:`build_vector_index`.
        search: See :func:`set_search`.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
        ValueError: If FAISS does not take the factory string or the settings of the search.
    """
    faiss = import_faiss()
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"cannot make an index {factory!r} of vectors of {dimension} numbers; expected a "
            f"factory string such as Flat, IVF4096,Flat, HNSW32 or IVF4096,PQ48 ({_reason(error)})"
        ) from error
    set_search(index, search)
    return index


def _reason(error: RuntimeError) -> str:
    """What FAISS says, without where in its source."""
    return str(error).strip().splitlines()[0].rpartition(": ")[2]


def _sample(blocks: Iterable[Vectors], count: int, factory: str) -> Vectors:
    """Vectors to train on, spread evenly over all."""
    lists = int(found[1]) if (found := re.search(r"IVF(\d+)", factory)) else 0
    wanted = max(_TRAINING_LEAST, _TRAINING_PER_LIST * lists)
    step = max(1, count // wanted)
    taken, place = [], 0
    for block in blocks:
        taken.append(block[-place % step :: step])
        place += len(block)
    return np.concatenate(taken)


def default_search(factory: str) -> str:
    """How thoroughly an index is searched by default.

    >>> default_search("Flat"), default_search("IVF4096,Flat"), default_search("HNSW32")
    ('', 'nprobe=128', 'efSearch=128')
    """
    if lists := re.search(r"IVF(\d+)", factory):
        return f"nprobe={max(1, int(lists[1]) // 32)}"
    return "efSearch=128" if "HNSW" in factory else ""


def set_search(index: Any, search: str) -> None:
    """Set how thoroughly an index is searched.

    Args:
        index: The index.
        search: FAISS's names and values, such as ``"nprobe=64"`` or ``"efSearch=256"``; more finds
            more and takes longer.

    Raises:
        ValueError: If the index has no such setting.
    """
    if not search:
        return
    faiss = import_faiss()
    try:
        faiss.ParameterSpace().set_index_parameters(index, search)
    except RuntimeError as error:
        raise ValueError(
            f"cannot search with {search!r}: expected settings that the index has, such as "
            "nprobe=64 (IVF) or efSearch=256 (HNSW)"
        ) from error


def write_vector_index(index: Any, folder: Path) -> None:
    """Write an index into a folder."""
    import_faiss().write_index(index, str(folder / VECTORS))


def read_vector_index(folder: Path, mmap: bool) -> Any:
    """Read the index of a folder.

    Args:
        folder: A folder that :func:`write_vector_index` wrote into.
        mmap: Map the vectors into memory: processes share them, and only what a search touches is
            read.

    Raises:
        CorruptIndexError: If it cannot be read.
    """
    faiss = import_faiss()
    try:
        return faiss.read_index(str(folder / VECTORS), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        raise CorruptIndexError(
            f"cannot read {folder / VECTORS} ({_reason(error)}); build the index again"
        ) from error
