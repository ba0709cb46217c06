r"""Searches per second and their latency: in process, over HTTP, and with micro-batches.

python -m scripts.benchmarks.retrieval --out runs/bench_wiki --index indexes/wiki \
    --index indexes/wiki_e5 --questions data/hotpotqa.questions.jsonl

Every client is a thread that searches for one query after the other, without a cache: directly,
with a server that runs every search by itself ("single"), and with one that runs them in
micro-batches ("batched"). The arms take turns in several rounds, so that whatever else the machine
does meets all of them: compare them with each other, not with those of another run. CPU
milliseconds are those of the searching process, per search; "different" counts queries that found
other documents than by themselves in process.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--index", type=Path, action="append", required=True, help="a saved index; may be repeated"
    )
    parser.add_argument("--questions", default="world-train", help="what is searched for")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the encoder, for queries")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import httpx2
import numpy as np

from igsearch_env.cli.console import progress_bar
from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Document
from igsearch_env.files import write_json
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.server_limits import ServerLimits

SearchFunction = Callable[[Sequence[str], int], list[list[Document]]]
TOP_K = 3
ARMS = {"single": 1, "batched": ServerLimits().batch}  # queries of a micro-batch
CLIENTS = (1, 4, 16, 64)
ROUNDS, SECONDS = 5, 3.0  # of each arm at each number of clients
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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every index, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    # Before torch and faiss are loaded, here and in the servers.
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    queries = [question.text for question in islice(load_questions(arguments.questions), 500)]
    dense: dict[str, Any] = {"precision": arguments.precision} if arguments.precision else {}
    for index in arguments.index:
        open_retriever(index, **dense)  # refuses what it has no use for, before all work
    rows = [row for index in arguments.index for row in bench_index(index, dense, queries)]
    write_json(arguments.out / "results.json", {"rows": rows})
    print_rows("searches of one query each", rows, COLUMNS)


def bench_index(index: Path, dense: dict[str, Any], queries: Sequence[str]) -> list[dict[str, Any]]:
    """Measure one index in process and behind two servers, at several numbers of clients."""
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running_server(index, batch, dense))
            for name, batch in ARMS.items()
        }
        retriever = open_retriever(index, **dense)
        arms = {"direct": Searcher(retriever.search, time.process_time)}
        for name, address in addresses.items():
            client = HTTPRetriever(address, connections=max(CLIENTS), cache_size=0, attempts=1)
            stack.enter_context(client)
            client.wait_until_ready()
            arms[name] = Searcher(client.search, partial(server_cpu_seconds, address))
        expected = {
            query: [doc.id for doc in retriever.search([query], TOP_K)[0]] for query in queries
        }
        samples = {(name, number): Samples() for number in CLIENTS for name in arms}
        with progress_bar() as bar:
            task = bar.add_task(index.name, total=len(samples) * ROUNDS, note="")
            for arm in arms.values():
                arm.search(queries[:1], TOP_K)  # open the connections, wake what sleeps
            for _ in range(ROUNDS):
                for (name, number), measured in samples.items():
                    bar.update(task, note=f"{name}, {number} clients")
                    put_load(arms[name], number, SECONDS, queries, expected, measured)
                    bar.advance(task)
    return [
        {"index": index.name, "documents": len(retriever), **dense, "arm": name, "clients": number}
        | measured.row()
        for (name, number), measured in samples.items()
    ]


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
def running_server(index: Path, batch: int, dense: dict[str, Any]) -> Iterator[str]:
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
