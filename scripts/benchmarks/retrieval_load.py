"""Load on a retriever: clients that search without a pause, and servers to search with."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import numpy as np

from igsearch_env.episode import Document

Search = Callable[[Sequence[str], int], list[list[Document]]]
TOP_K = 3


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
class Arm:
    """A way to search.

    Args:
        search: What the clients call.
        cpu_seconds: CPU time so far of the process that searches.
    """

    search: Search
    cpu_seconds: Callable[[], float]


def put_load(
    arm: Arm,
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
    """CPU time of a server so far, as its metrics tell."""
    text = httpx2.get(urljoin(address, "/metrics"), trust_env=False).text
    found = re.search(r"^process_cpu_seconds_total (\S+)", text, flags=re.MULTILINE)
    return float(found[1]) if found else math.nan
