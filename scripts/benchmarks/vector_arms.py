"""One arm of the vector benchmark: an index that is built, searched and measured."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.vector_index import (
    VECTORS,
    build_vector_index,
    import_faiss,
    read_vector_index,
    set_search,
    write_vector_index,
)

TOP_K = 3
BLOCK = 50_000
BATCH = 64
SECONDS = 20.0  # of single queries, at most


@dataclass(frozen=True)
class IndexCase:
    """An index to measure.

    Args:
        factory: FAISS factory string.
        searches: Settings to search it with.
        folder: Holds ``vectors.npy``, shape (vectors, dimension), and ``queries.npy``.
        threads: Threads to build with; searches run on one.
    """

    factory: str
    searches: tuple[str, ...]
    folder: str
    threads: int = 1


@dataclass(frozen=True)
class SearchCost:
    """How an index was searched and what came of it.

    Args:
        search: The settings.
        found: The best vectors of each query, shape (queries, TOP_K), as lists.
        milliseconds: Of one query alone, median.
        p99: Of one query alone, 99th percentile.
        cpu_milliseconds: Of the processor for one query alone, median; what else the machine does
            matters less to it.
        batch_cpu_milliseconds: The same for one query in a batch of BATCH.
    """

    search: str
    found: list[list[int]]
    milliseconds: float
    p99: float
    cpu_milliseconds: float
    batch_cpu_milliseconds: float


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Args:
        build_seconds: Time to train and fill the index.
        index_bytes: Size of the index, on disk and in memory.
        peak_bytes: Largest resident memory of the process that built it.
        searches: One for each of the arm's.
    """

    build_seconds: float
    index_bytes: int
    peak_bytes: int
    searches: tuple[SearchCost, ...]


def make_vectors(base: Vectors, count: int, noise: float, seed: int, path: Path) -> None:
    """Write perturbed copies of vectors of length 1, themselves of length 1, block by block.

    Args:
        base: Vectors to copy in turn, shape (some, dimension).
        count: How many to write.
        noise: Length of what is added to each copy; 0.5 leaves a cosine of about 0.89.
        seed: Seed of the noise.
        path: The ``.npy`` file.
    """
    rng = np.random.default_rng(seed)
    dimension = base.shape[1]
    written = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
    for start in range(0, count, BLOCK):
        places = np.arange(start, min(start + BLOCK, count)) % len(base)
        block = rng.standard_normal((len(places), dimension), dtype=np.float32)
        block *= noise / np.sqrt(dimension)
        block += base[places]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        written[start : start + len(places)] = block
    written.flush()


def measure(arm: IndexCase) -> Measurement:
    """Build an index, write it, map it into memory as a retriever does, and search it."""
    folder = Path(arm.folder)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    import_faiss().omp_set_num_threads(arm.threads)

    def blocks() -> list[Vectors]:
        return [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]

    began = time.perf_counter()
    index = build_vector_index(blocks, len(vectors), arm.factory)
    build_seconds = time.perf_counter() - began
    place = folder / f"index-{arm.factory.replace(',', '-')}"
    place.mkdir(exist_ok=True)
    write_vector_index(index, place)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del index
    import_faiss().omp_set_num_threads(1)
    index = read_vector_index(place, mmap=True)
    searches = []
    for search in arm.searches:
        set_search(index, search)
        searches.append(_search(index, search, queries))
    size = (place / VECTORS).stat().st_size
    (place / VECTORS).unlink()
    place.rmdir()
    return Measurement(build_seconds, size, peak, tuple(searches))


def _search(index: Any, search: str, queries: Vectors) -> SearchCost:
    found, in_batch = [], []
    for start in range(0, len(queries), BATCH):
        batch = queries[start : start + BATCH]
        began = time.thread_time()
        _, numbers = index.search(batch, TOP_K)
        in_batch.append((time.thread_time() - began) / len(batch))
        found += numbers.tolist()
    alone, cpu = [], []
    for query in queries:
        began, worked = time.perf_counter(), time.thread_time()
        index.search(query[None], TOP_K)
        cpu.append(time.thread_time() - worked)
        alone.append(time.perf_counter() - began)
        if sum(alone) > SECONDS:
            break
    return SearchCost(
        search,
        found,
        1000 * statistics.median(alone),
        1000 * float(np.percentile(alone, 99)),
        1000 * statistics.median(cpu),
        1000 * statistics.median(in_batch),
    )
