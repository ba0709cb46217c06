r"""Exact dense search: FAISS in main memory against torch on a device, documents and time.

python -m scripts.benchmarks.flat --out runs/flat --index indexes/dense \
    --questions data/nq.questions.jsonl data/popqa.questions.jsonl
python -m scripts.benchmarks.flat --out runs/flat_21m --random 21000000 --device cuda

The first takes a saved flat index. Queries are the questions, then the titles and the first
sentences of documents, until there are --queries of them. FAISS searches for each by itself; every
other arm is compared with that. "other documents" counts queries that found another list of
documents. The arms take turns over portions of the queries.

The second makes random vectors of length 1 on the device, in float16 there and in float32 in main
memory. "GB/s" is how fast the vectors were read, "of reading" its share of what the device reaches
when it only adds up all of its vectors.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import parse_early, positive, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--index", type=Path, help="a saved flat index")
    what.add_argument("--random", type=positive, metavar="N", help="so many random vectors instead")
    parser.add_argument("--questions", nargs="+", default=[], help="what is searched for")
    parser.add_argument("--queries", type=positive, default=10_000, help="(default: 10000)")
    parser.add_argument("--dimension", type=positive, default=768, help="of random vectors")
    parser.add_argument("--device", default="cpu", help="torch's name; several by commas")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np
import torch

from agents.loading import check_device
from igsearch_env.cli.console import progress_bar
from igsearch_env.data.questions import load_questions
from igsearch_env.files import write_json
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.vector_device import TorchFlat, faiss_on_gpus
from igsearch_env.retrieval.vector_index import import_faiss

TOP_K = 3
BATCHES = (1, 64, 512)
PORTION = 512
ALONE = 4  # portions that are searched one query at a time, but for FAISS
RANDOM_SECONDS = 5.0
COLUMNS = {
    "arm": ("arm", "s"),
    "batch": ("batch", "d"),
    "queries": ("queries", ",d"),
    "ms": ("ms per query", ".3f"),
    "different": ("other documents", "d"),
}
RANDOM_COLUMNS = {
    "arm": ("arm", "s"),
    "batch": ("batch", "d"),
    "ms": ("ms per query", ".3f"),
    "gb_per_second": ("GB/s", ",.1f"),
    "of_reading": ("of reading", ".2f"),
}
Search = Callable[[Vectors, int], tuple[Any, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    torch.set_num_threads(arguments.threads)
    import_faiss().omp_set_num_threads(arguments.threads)
    names = arguments.device.split(",")
    for name in names:
        check_device(name)
    devices = [torch.device(name) for name in names]
    if arguments.random:
        rows = bench_random(arguments.random, arguments.dimension, devices)
        print_rows(f"{arguments.random:,} random vectors", rows, RANDOM_COLUMNS)
    else:
        retriever = DenseRetriever.load(arguments.index)
        texts = list(islice(_texts(arguments.questions, retriever), arguments.queries))
        rows = bench_index(retriever, texts, devices)
        print_rows(f"{len(retriever):,} documents", rows, COLUMNS)
    write_json(arguments.out / "results.json", {"rows": rows})


def _texts(questions: Sequence[str], retriever: DenseRetriever) -> Iterator[str]:
    """Questions, titles and first sentences, each once."""
    seen: dict[str, None] = {}
    documents = list(retriever.documents)
    for text in (
        *(question.text for name in questions for question in load_questions(name)),
        *(document.title for document in documents),
        *(document.text.partition(". ")[0] for document in documents),
    ):
        if text.strip() and text not in seen:
            seen[text] = None
            yield text


@dataclass
class Arm:
    """A way to search, and what it took.

    Args:
        name: What it is called.
        batch: Queries at a time.
        search: Gives scores and numbers of vectors.
    """

    name: str
    batch: int
    search: Search
    seconds: float = 0.0
    queries: int = 0
    different: int = field(default=0, init=False)

    def run(self, vectors: Vectors, expected: Any = None) -> Any:
        """Search for some queries; gives the numbers of their documents."""
        parts = range(0, len(vectors), self.batch)
        start = time.perf_counter()
        found = np.concatenate(
            [self.search(vectors[at : at + self.batch], TOP_K)[1] for at in parts]
        )
        self.seconds += time.perf_counter() - start
        self.queries += len(vectors)
        if expected is not None:
            self.different += int((found != expected).any(axis=1).sum())
        return found

    def row(self) -> dict[str, Any]:
        """The numbers, as JSON-ready data."""
        return {
            "arm": self.name,
            "batch": self.batch,
            "queries": self.queries,
            "ms": round(1000 * self.seconds / self.queries, 4),
            "different": self.different,
        }


def bench_index(
    retriever: DenseRetriever, texts: Sequence[str], devices: Sequence[torch.device]
) -> list[dict[str, Any]]:
    """Search for all queries in every arm."""
    index = retriever.index
    if not isinstance(index, import_faiss().IndexFlat):
        raise ValueError("expected a flat index: build one with igsearch index --factory Flat")
    ways: dict[str, Search] = {"FAISS": _ordered(index.search)}
    for dtype in (None, torch.float16):
        flat = TorchFlat(index, devices, dtype)
        kind = str(flat.parts[0].vectors.dtype).removeprefix("torch.")
        ways[f"torch {kind}, {','.join(map(str, devices))}"] = flat.search
    if hasattr(import_faiss(), "StandardGpuResources") and devices[0].type == "cuda":
        ways["faiss-gpu float16"] = _ordered(faiss_on_gpus(index, devices).search)
    arms = [Arm(name, batch, search) for name, search in ways.items() for batch in BATCHES]
    reference, *others = arms
    with progress_bar() as bar:
        task = bar.add_task("encode", total=len(texts))
        vectors = []
        for at in range(0, len(texts), PORTION):
            vectors.append(retriever.encoder.encode_queries(texts[at : at + PORTION]))
            bar.advance(task, len(vectors[-1]))
        task = bar.add_task("search", total=len(texts))
        for number, portion in enumerate(vectors):
            expected = reference.run(portion)
            for arm in others:
                if arm.batch > 1 or number < ALONE:
                    arm.run(portion, expected)
            bar.advance(task, len(portion))
    return [arm.row() for arm in arms]


def _ordered(search: Search) -> Search:
    """FAISS's search with equal scores in the order of the corpus, as a retriever has them."""

    def run(vectors: Vectors, k: int) -> tuple[Any, Any]:
        scores, numbers = search(vectors, k)
        order = np.lexsort((numbers, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)

    return run


def bench_random(
    count: int, dimension: int, devices: Sequence[torch.device]
) -> list[dict[str, Any]]:
    """Search random vectors in float16, whole and without the scoring in main memory."""
    flat = TorchFlat(_random_index(count, dimension, devices[0]), devices, torch.float16)
    rng = np.random.default_rng(1)
    total = sum(part.vectors.numel() * part.vectors.itemsize for part in flat.parts)
    reading = _seconds(flat, lambda: [part.vectors.sum() for part in flat.parts])
    rows = [_random_row("adding up", 1, reading, total, reading)]
    for batch in BATCHES:
        queries = rng.standard_normal((batch, dimension), dtype=np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        for name, search in (
            ("candidates", lambda queries=queries: flat._candidates(queries, 32)),
            ("exact top 3", lambda queries=queries: flat.search(queries, TOP_K)),
        ):
            seconds = _seconds(flat, search)
            rows.append(_random_row(name, batch, seconds, total, reading))
    return rows


def _random_row(
    name: str, batch: int, seconds: float, total: int, reading: float
) -> dict[str, Any]:
    return {
        "arm": name,
        "batch": batch,
        "ms": round(1000 * seconds / batch, 4),
        "gb_per_second": round(total / seconds / 1e9, 1),
        "of_reading": round(reading / seconds, 3),
    }


def _seconds(flat: TorchFlat, work: Callable[[], object]) -> float:
    """Median seconds of a piece of work."""
    taken: list[float] = []
    work()  # the first time loads what it needs
    end = time.perf_counter() + RANDOM_SECONDS
    while len(taken) < 3 or time.perf_counter() < end:
        _wait(flat)
        start = time.perf_counter()
        work()
        _wait(flat)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def _wait(flat: TorchFlat) -> None:
    for part in flat.parts:
        if part.vectors.device.type == "cuda":
            torch.cuda.synchronize(part.vectors.device)


def _random_index(count: int, dimension: int, device: torch.device) -> Any:
    """A flat index of random vectors of length 1, made on a device block by block."""
    faiss = import_faiss()
    index = faiss.IndexFlatIP(dimension)
    index.codes.resize(4 * count * dimension)  # at once: adding would need twice the memory
    index.ntotal = count
    kept = faiss.rev_swig_ptr(index.get_xb(), count * dimension).reshape(count, dimension)
    torch.manual_seed(0)
    for start in range(0, count, 1 << 18):
        block = kept[start : start + (1 << 18)]
        made = torch.randn(block.shape, device=device)
        torch.from_numpy(block).copy_(torch.nn.functional.normalize(made, dim=1))
    return index


if __name__ == "__main__":
    run(main)
