r"""Searches per second and their latency: in process, over HTTP, and with micro-batches.

python -m scripts.benchmarks.retrieval --out runs/bench_wiki --index indexes/wiki \
    --index indexes/wiki_e5 --questions data/hotpotqa.questions.jsonl

Every client is a thread that searches for one query after the other, without a cache: directly,
with a server that runs every search by itself ("single"), with one that runs them in micro-batches
("batched"), with one that has two search processes besides ("workers"), and with one that lets 64
queries wait at most ("limited"; a client that is refused comes again after a quarter of a second).
The arms take turns in several rounds, so that whatever else the machine does meets all of them:
compare them with each other, not with those of another run. Latencies are those of searches that
were answered; "refused" counts the others. CPU milliseconds are those of the searching processes,
per search; "different" counts queries that found other documents than by themselves in process.
"""

from __future__ import annotations

import argparse
import logging
import os
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
    parser.add_argument("--vector-device", help="where dense vectors are searched, such as cuda")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.cli.console import progress_bar
from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Document
from igsearch_env.files import write_json
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.http_line import HTTPRetrievalError
from igsearch_env.retrieval.open import open_retriever

SearchFunction = Callable[[Sequence[str], int], list[list[Document]]]
TOP_K = 3
ARMS = {
    "single": ("--batch", "1"),
    "batched": (),
    "workers": ("--workers", "2"),
    "limited": ("--max-waiting", "64"),
}
"""Flags of the servers."""
PAUSE = 0.25  # seconds that a client waits after a refusal
CLIENTS = (1, 16, 64, 256)
ROUNDS, SECONDS = 5, 3.0  # of each arm at each number of clients
COLUMNS = {
    "index": ("index", "s"),
    "arm": ("arm", "s"),
    "clients": ("clients", "d"),
    "per_second": ("per second", ",.0f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "cpu_ms": ("CPU ms", ".2f"),
    "refused": ("refused", ",d"),
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
    logging.getLogger("igsearch_env").setLevel(logging.ERROR)  # refusals are counted
    queries = [question.text for question in islice(load_questions(arguments.questions), 500)]
    given = {"precision": arguments.precision, "vector_device": arguments.vector_device}
    dense = {name: value for name, value in given.items() if value}
    for index in arguments.index:
        open_retriever(index, **dense)  # refuses what it has no use for, before all work
    rows = [row for index in arguments.index for row in bench_index(index, dense, queries)]
    write_json(arguments.out / "results.json", {"rows": rows})
    print_rows("searches of one query each", rows, COLUMNS)


def bench_index(index: Path, dense: dict[str, Any], queries: Sequence[str]) -> list[dict[str, Any]]:
    """Measure one index in process and behind two servers, at several numbers of clients."""
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running_server(index, flags, dense))
            for name, flags in ARMS.items()
        }
        retriever = open_retriever(index, **dense)
        arms = {"direct": Searcher(retriever.search, time.process_time)}
        for name, (address, pid) in addresses.items():
            client = HTTPRetriever(address, connections=max(CLIENTS), cache_size=0, attempts=1)
            stack.enter_context(client)
            client.wait_until_ready()
            arms[name] = Searcher(client.search, partial(cpu_seconds_of, pid))
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
        refused: Searches that the server did not take.
    """

    milliseconds: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    different: set[str] = field(default_factory=set)
    refused: int = 0

    def row(self) -> dict[str, float]:
        """Medians and percentiles, as JSON-ready data."""
        return {
            "searches": len(self.milliseconds),
            "per_second": round(float(np.median(self.per_second)), 1),
            "p50_ms": round(float(np.percentile(self.milliseconds, 50)), 2),
            "p99_ms": round(float(np.percentile(self.milliseconds, 99)), 2),
            "cpu_ms": round(1000 * self.cpu_seconds / len(self.milliseconds), 2),
            "refused": self.refused,
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

    def client(number: int) -> tuple[list[float], set[str], int]:
        latencies, different, refused = [], set(), 0
        at = number * len(queries) // clients
        begin.wait()
        while not stop.is_set():
            query = queries[at % len(queries)]
            start = time.perf_counter()
            try:
                (found,) = arm.search([query], TOP_K)
            except HTTPRetrievalError as error:
                if error.kind != "status":
                    raise
                refused += 1
                stop.wait(PAUSE)
                continue
            latencies.append(1000 * (time.perf_counter() - start))
            if [doc.id for doc in found] != expected[query]:
                different.add(query)
            at += 1
        return latencies, different, refused

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
    for latencies, different, refused in results:
        samples.milliseconds += latencies
        samples.different |= different
        samples.refused += refused
    samples.per_second.append(sum(len(latencies) for latencies, *_ in results) / elapsed)


@contextmanager
def running_server(
    index: Path, flags: Sequence[str], dense: dict[str, Any]
) -> Iterator[tuple[str, int]]:
    """A server process of an index, until the block ends; gives its address and id at once.

    Args:
        index: Folder of the index.
        flags: Further flags of ``igsearch serve``.
        dense: Options of ``open_retriever``.

    Raises:
        ValueError: If it ends before it serves.
    """
    words = ["--index", str(index), "--port", "0", *flags]
    words += [w for name, value in dense.items() for w in ("--" + name.replace("_", "-"), value)]
    command = [sys.executable, "-m", "igsearch_env.cli", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("serving "):
                raise ValueError(f"the server of {index} ended: {line!r}; see its error above")
            yield line.split()[1].rstrip(";"), process.pid
        finally:
            process.kill()


def cpu_seconds_of(pid: int) -> float:
    """CPU time so far of a process and of its children, as Linux counts it."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(encoding="utf-8")
        except OSError:  # it has ended
            continue
        fields = stat.rpartition(")")[2].split()  # from the state on; the name may hold anything
        if pid in (int(folder.name), int(fields[1])):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run(main)
