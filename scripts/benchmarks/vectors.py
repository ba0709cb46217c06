r"""Compare FAISS indexes on a million vectors: time to build, memory, recall and latency.

python -m scripts.benchmarks.vectors --index indexes/minilm --questions hotpotqa.questions.jsonl \
    --out runs/bench_vectors
python -m scripts.benchmarks.vectors --quick --out runs/bench_vectors_quick

The vectors are synthetic: perturbed copies of those of a flat index, so that they lie as vectors of
documents do (without --index: random clusters). Queries are those of --questions, in the encoder of
the index (without: perturbed vectors). Every index is built and searched in a process of its own.
Searches run on one thread. Recall is the share of the best 3 of the flat index that are found; "in
64" is the processor time of a query in a batch of 64, in ms; peak is the memory of the process that
built the index, in GiB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, sqrt
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import parse_early, positive, run
from scripts.benchmarks.kit import benchmark_parser, measure_apart, peak_bytes, print_rows


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__, "20,000 vectors, if --count says nothing else")
    parser.add_argument("--index", type=Path, help="a saved dense index whose vectors are copied")
    parser.add_argument("--questions", nargs="+", help="question sets to search for")
    parser.add_argument("--count", type=positive, help="vectors (default: 1,000,000)")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.data.questions import load_questions
from igsearch_env.files import write_json
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.vector_index import (
    VECTORS,
    build_vector_index,
    import_faiss,
    read_vector_index,
    set_search,
    write_vector_index,
)

NOISE, QUERY_NOISE = 0.5, 1.0
"""Lengths of what is added to copies; 0.5 leaves a cosine of about 0.89."""
QUERIES, TOP_K, BATCH = 500, 3, 64
BLOCK = 50_000
SECONDS = 20.0  # of single queries, at most
GIB = 1 << 30
COLUMNS = {
    "factory": ("index", "s"),
    "search": ("search", "s"),
    "build_seconds": ("build s", ",.0f"),
    "index_gib": ("GiB", ".2f"),
    "peak_gib": ("peak", ".2f"),
    "recall": ("recall@3", ".3f"),
    "milliseconds": ("ms", ",.2f"),
    "cpu_milliseconds": ("CPU ms", ",.2f"),
    "batch_cpu_milliseconds": ("in 64", ",.2f"),
}


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
    folder: Path
    threads: int = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every index, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    count = args.count or (20_000 if args.quick else 1_000_000)
    base, queries = _base(args.index, args.questions)
    args.out.mkdir(parents=True, exist_ok=True)
    make_vectors(base, count, NOISE, 0, args.out / "vectors.npy")
    np.save(args.out / "queries.npy", queries)
    rows: list[dict[str, Any]] = []
    for _, found in measure_apart(plan(count, args.out, args.threads, args.quick), measure):
        rows += found
    (args.out / "vectors.npy").unlink()
    add_recall(rows)
    origin = str(args.index) if args.index else "random clusters"
    size = {"count": count, "dimension": base.shape[1], "index": origin}
    write_json(args.out / "results.json", {**size, "rows": rows})
    print_rows(f"{count:,} × {base.shape[1]}, synthetic ({origin})", rows, COLUMNS)


def plan(count: int, folder: Path, threads: int, quick: bool) -> dict[str, IndexCase]:
    """The indexes for so many vectors; flat comes first, since the others are compared with it."""
    product = "PQ48x4" if quick else "PQ48"  # half the bits, a fraction of the training
    lists = int(2 ** round(log2(sqrt(count))))
    probes = tuple(f"nprobe={max(1, lists // part)}" for part in (128, 32, 8))
    searches: dict[str, tuple[str, ...]] = {"Flat": ("",)}
    searches |= {f"IVF{lists},{code}": probes for code in ("Flat", "SQ8", product)}
    searches["HNSW32"] = tuple(f"efSearch={wide}" for wide in (32, 128, 512))
    return {name: IndexCase(name, ways, folder, threads) for name, ways in searches.items()}


def measure(case: IndexCase) -> list[dict[str, Any]]:
    """Build an index, write it, map it into memory as a retriever does, and search it.

    Returns:
        A row for each way to search it; ``found`` are the best vectors of each query, shape
        (queries, TOP_K).
    """
    vectors = np.load(case.folder / "vectors.npy", mmap_mode="r")
    queries = np.load(case.folder / "queries.npy")
    import_faiss().omp_set_num_threads(case.threads)

    def blocks() -> list[Vectors]:
        return [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]

    began = time.perf_counter()
    index = build_vector_index(blocks, len(vectors), case.factory)
    built = {"factory": case.factory, "build_seconds": time.perf_counter() - began}
    place = case.folder / "index"
    place.mkdir()
    write_vector_index(index, place)
    built |= {
        "index_gib": (place / VECTORS).stat().st_size / GIB,
        "peak_gib": peak_bytes() / GIB,
    }
    del index
    import_faiss().omp_set_num_threads(1)
    index = read_vector_index(place, mmap=True)
    (place / VECTORS).unlink()
    place.rmdir()
    rows = []
    for search in case.searches:
        set_search(index, search)
        rows.append(built | {"search": search} | _search(index, queries))
    return rows


def _search(index: Any, queries: Vectors) -> dict[str, Any]:
    """What was found, and medians of the time of a query: alone, and of the processor."""
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
    return {
        "found": found,
        "milliseconds": 1000 * statistics.median(alone),
        "cpu_milliseconds": 1000 * statistics.median(cpu),
        "batch_cpu_milliseconds": 1000 * statistics.median(in_batch),
    }


def add_recall(rows: Sequence[dict[str, Any]]) -> None:
    """Put the recall against the first row, the flat index, in the place of what was found."""
    best = rows[0]["found"]
    for row in rows:
        pairs = zip(best, row.pop("found"), strict=True)
        row["recall"] = statistics.fmean(len(set(a) & set(b)) / len(a) for a, b in pairs)


def make_vectors(base: Vectors, count: int, noise: float, seed: int, path: Path) -> None:
    """Write perturbed copies of vectors of length 1, themselves of length 1, block by block.

    Args:
        base: Vectors to copy in turn, shape (some, dimension).
        count: How many to write.
        noise: Length of what is added to each copy.
        seed: Of the noise.
        path: The file, ``.npy``, shape (count, dimension).
    """
    rng = np.random.default_rng(seed)
    written = np.lib.format.open_memmap(path, "w+", np.float32, (count, base.shape[1]))
    for start in range(0, count, BLOCK):
        places = np.arange(start, min(start + BLOCK, count)) % len(base)
        written[start : start + len(places)] = _perturbed(base[places], noise, rng)
    written.flush()


def _base(index: Path | None, questions: Sequence[str] | None) -> tuple[Vectors, Vectors]:
    """Vectors to copy, and queries, shape (some, dimension) each."""
    rng = np.random.default_rng(1)

    def copies(vectors: Vectors, count: int, noise: float) -> Vectors:
        return _perturbed(vectors[rng.integers(len(vectors), size=count)], noise, rng)

    if index is None:
        base = copies(_unit(rng.standard_normal((200, 384), dtype=np.float32)), 2_000, 1.0)
        return base, copies(base, QUERIES, QUERY_NOISE)
    retriever = DenseRetriever.load(index)
    base = retriever.vectors()
    if questions is None:
        return base, copies(base, QUERIES, QUERY_NOISE)
    texts = [question.text for name in questions for question in load_questions(name)]
    chosen = rng.permutation(len(texts))[:QUERIES]
    return base, retriever.encoder.encode_queries([texts[number] for number in chosen])


def _perturbed(vectors: Vectors, noise: float, rng: np.random.Generator) -> Vectors:
    added = rng.standard_normal(vectors.shape, dtype=np.float32)
    return _unit(vectors + added * np.float32(noise / sqrt(vectors.shape[1])))


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


if __name__ == "__main__":
    run(main)
