r"""Compare FAISS indexes on a million vectors: time to build, memory, recall and latency.

python -m scripts.benchmarks.vectors --index indexes/minilm --questions hotpotqa.questions.jsonl \
    --out runs/bench_vectors
python -m scripts.benchmarks.vectors --quick --out runs/bench_vectors_quick

The vectors are synthetic: perturbed copies of those of a flat index, so that they lie as vectors of
passages do (without --index: random clusters). Queries are those of --questions, in the encoder of
the index (without: perturbed vectors). Every index is built and searched in a process of its own,
and is kept: --resume goes on after the last one. Searches run on one thread. Recall is the share of
the best 3 of the flat index that are found; "in 64" is the processor time of a query in a batch of
64, in ms; peak is the memory of the process that built the index, in GiB. The last table estimates
21 million vectors of 768 numbers (Wikipedia of 2018 in E5-base) from these; see sizing().
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from math import log, log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from igsearch_env.cli.console import console, progress_bar
from igsearch_env.cli.program import positive, run
from igsearch_env.data.questions import load_questions
from igsearch_env.files import write_json
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.vector_index import code_bytes
from scripts.benchmarks.vector_arms import IndexCase, make_vectors, measure

WIKIPEDIA = (21_015_324, 768)
NOISE = 0.5
QUERY_NOISE = 1.0
QUERIES = 500


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the arms that are missing, then print and save the tables.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    count = args.count or (20_000 if args.quick else 1_000_000)
    settings = {
        "count": count,
        "index": str(args.index) if args.index else "random clusters",
        "questions": args.questions or [],
        "noise": NOISE,
    }
    _begin(args, settings)
    if not (args.out / "queries.npy").is_file():
        base, queries = _base(args.index, args.questions)
        make_vectors(base, count, NOISE, 0, args.out / "vectors.npy")
        np.save(args.out / "queries.npy", queries)
    dimension = np.load(args.out / "queries.npy", mmap_mode="r").shape[1]
    results = run_arms(plan(count, args.out, args.threads, args.quick), args.out / "arms")
    (args.out / "vectors.npy").unlink(missing_ok=True)
    rows = make_rows(results, count, dimension)
    sizes = sizing(rows, *WIKIPEDIA)
    write_json(args.out / "results.json", {**settings, "rows": rows, "sizing": sizes})
    console.print(_table(rows, f"{count:,} × {dimension}, synthetic ({settings['index']})"))
    console.print(_table(sizes, f"{WIKIPEDIA[0]:,} × {WIKIPEDIA[1]}, estimated"))


def plan(count: int, folder: Path, threads: int, quick: bool) -> list[IndexCase]:
    """The indexes for so many vectors; flat comes first, since the others are compared with it."""
    product = "PQ48x4" if quick else "PQ48"  # half the bits, a fraction of the training
    lists = lists_for(count)
    probes = tuple(f"nprobe={max(1, lists // part)}" for part in (128, 32, 8))
    arms: dict[str, tuple[str, ...]] = {"Flat": ("",)}
    arms |= {f"IVF{lists},{code}": probes for code in ("Flat", "SQ8", product)}
    arms["HNSW32"] = tuple(f"efSearch={wide}" for wide in (32, 128, 512))
    return [
        IndexCase(factory, searches, str(folder), threads) for factory, searches in arms.items()
    ]


def lists_for(count: int) -> int:
    """How many lists an IVF index of so many vectors gets: about the square root, a power of 2."""
    return int(2 ** round(log2(sqrt(count))))


def run_arms(arms: Sequence[IndexCase], folder: Path) -> list[dict[str, Any]]:
    """Measure the arms whose file is not in ``folder`` yet, each in a fresh process.

    Returns:
        For each arm its ``factory`` and its ``measurement``, as JSON-ready data.

    Raises:
        ValueError: If a process was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.benchmarks.vector_arms"])
    results = []
    with (
        ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool,
        progress_bar() as bar,
    ):
        task = bar.add_task("indexes", total=len(arms), note="")
        for arm in arms:
            bar.update(task, note=arm.factory)
            path = folder / f"{arm.factory.replace(',', '-')}.json"
            if not path.is_file():
                try:
                    done = pool.submit(measure, arm).result()
                except BrokenProcessPool as error:
                    raise ValueError(
                        f"the process of {arm.factory} was killed: out of memory?"
                    ) from error
                write_json(path, {"factory": arm.factory, "measurement": asdict(done)})
                if not console.is_terminal:
                    console.print(f"{arm.factory}: built in {done.build_seconds:.0f} s")
            results.append(json.loads(path.read_text(encoding="utf-8")))
            bar.update(task, advance=1)
    return results


def make_rows(
    results: Sequence[dict[str, Any]], count: int, dimension: int
) -> list[dict[str, Any]]:
    """One row for each way of searching, with its recall against the first index, the flat one."""
    (flat,) = results[0]["measurement"]["searches"]
    rows = []
    for result in results:
        measured = result["measurement"]
        for search in measured["searches"]:
            pairs = zip(flat["found"], search["found"], strict=True)
            shares = [len(set(best) & set(found)) / len(best) for best, found in pairs]
            rows.append(
                {
                    "factory": result["factory"],
                    "search": search["search"],
                    "count": count,
                    "dimension": dimension,
                    "build_seconds": measured["build_seconds"],
                    "index_bytes": measured["index_bytes"],
                    "peak_bytes": measured["peak_bytes"],
                    "recall": sum(shares) / len(shares),
                    "milliseconds": search["milliseconds"],
                    "p99": search["p99"],
                    "cpu_milliseconds": search["cpu_milliseconds"],
                    "batch_cpu_milliseconds": search["batch_cpu_milliseconds"],
                }
            )
    return rows


def sizing(rows: Sequence[dict[str, Any]], count: int, dimension: int) -> list[dict[str, Any]]:
    """What the same indexes would need for other vectors, as estimates.

    - Memory: the bytes of a vector's code, which grow with its length (PQ gets as many more), and
      those around it (lists, graph), as measured, times ``count``.
    - Processor time of a search: proportional to the length of the vectors, and to what it looks
      at: all of them (flat), the same share of more lists (IVF), or a walk that grows with the
      logarithm of the count (HNSW).

    Args:
        rows: What was measured.
        count: How many vectors.
        dimension: Their length.
    """
    sizes = []
    for row in rows:
        code = code_bytes(row["factory"], row["dimension"])
        around = row["index_bytes"] / row["count"] - code
        wide = dimension / row["dimension"]
        graph = "HNSW" in row["factory"]
        more = log(count) / log(row["count"]) if graph else count / row["count"]
        lists = lists_for(count) / lists_for(row["count"])
        sizes.append(
            {
                "factory": _scaled(
                    r"(?<=IVF)\d+", lists, _scaled(r"(?<=PQ)\d+", wide, row["factory"])
                ),
                "search": _scaled(r"(?<=nprobe=)\d+", lists, row["search"]),
                "index_bytes": round((code * wide + around) * count),
                "cpu_milliseconds": row["cpu_milliseconds"] * wide * more,
            }
        )
    return sizes


def _scaled(number: str, factor: float, text: str) -> str:
    """A text with a number in it multiplied."""
    return re.sub(number, lambda found: str(round(int(found[0]) * factor)), text)


def _begin(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Make the folder, or make sure that it is one of the same benchmark to go on with."""
    file = args.out / "settings.json"
    if file.is_file() and not args.resume:
        raise ValueError(
            f"{args.out} holds a benchmark; pass --resume to go on, or choose another folder"
        )
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{args.out} holds another benchmark; choose another folder")
    write_json(file, settings)


def _base(index: Path | None, questions: Sequence[str]) -> tuple[Vectors, Vectors]:
    """Vectors to copy, and queries, shape (some, dimension) each."""
    rng = np.random.default_rng(1)
    if index is None:
        centres = rng.standard_normal((200, 384), dtype=np.float32)
        base = _perturbed(_unit(centres), 2_000, 1.0, rng)
        return base, _perturbed(base, QUERIES, QUERY_NOISE, rng)
    retriever = DenseRetriever.load(index)
    base = retriever.vectors()
    if not questions:
        return base, _perturbed(base, QUERIES, QUERY_NOISE, rng)
    texts = [question.text for name in questions for question in load_questions(name)]
    chosen = rng.permutation(len(texts))[:QUERIES]
    return base, retriever.encoder.encode_queries([texts[number] for number in chosen])


def _perturbed(base: Vectors, count: int, noise: float, rng: np.random.Generator) -> Vectors:
    chosen = base[rng.integers(len(base), size=count)]
    added = rng.standard_normal(chosen.shape, dtype=np.float32) * (noise / sqrt(base.shape[1]))
    return _unit(chosen + added.astype(np.float32))


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "factory": ("index", str),
        "search": ("search", str),
        "build_seconds": ("build s", "{:,.0f}".format),
        "index_bytes": ("GiB", _gib),
        "peak_bytes": ("peak", _gib),
        "recall": ("recall@3", "{:.3f}".format),
        "milliseconds": ("ms", "{:,.2f}".format),
        "cpu_milliseconds": ("CPU ms", "{:,.2f}".format),
        "batch_cpu_milliseconds": ("in 64", "{:,.2f}".format),
    }
    shown = {name: column for name, column in columns.items() if name in rows[0]}
    for heading, write in shown.values():
        table.add_column(heading, justify="left" if write is str else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(write(row[name]) for name, (_, write) in shown.items()))
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.vectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        help="folder of the results, and of the vectors meanwhile",
    )
    add("--index", type=Path, help="a saved dense index whose vectors are copied")
    add("--questions", nargs="+", help="question sets whose questions are the queries")
    add("--count", type=positive, help="vectors (default: 1,000,000; with --quick 20,000)")
    add("--threads", type=positive, default=1, help="to build with (default: 1)")
    add("--quick", action="store_true", help="few vectors")
    add("--resume", action="store_true", help="keep the indexes that were measured")
    return parser


if __name__ == "__main__":
    run(main)
