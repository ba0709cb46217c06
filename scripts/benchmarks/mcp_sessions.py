r"""Searches per second over MCP, and their latency: one session, many at once, and in process.

python -m scripts.benchmarks.mcp_sessions --out runs/bench_mcp --index indexes/wiki \
    --questions data/hotpotqa.questions.jsonl

The official client calls the tool "search" of a server that runs as a process of its own. Sessions
share a list of queries; each has one call under way at a time. "different" counts searches that
found other documents than by themselves in process.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import parse_early, positive, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--index", type=Path, required=True, help="a saved index")
    parser.add_argument("--questions", default="world-train", help="what is searched for")
    parser.add_argument("--sessions", type=positive, nargs="+", default=[1, 64])
    parser.add_argument("--searches", type=positive, default=2_000, help="of each row")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np
from mcp import Client

from igsearch_env.data.questions import load_questions
from igsearch_env.files import write_json
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.mcp_server import MCP_PATH
from igsearch_env.retrieval.open import open_retriever
from scripts.benchmarks.retrieval import TOP_K, running_server

COLUMNS = {
    "arm": ("arm", "s"),
    "per_second": ("per second", ",.0f"),
    "of_direct": ("of direct", ".2f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "different": ("different", "d"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every number of sessions, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    queries = [question.text for question in islice(load_questions(arguments.questions), 500)]
    asked = [queries[at % len(queries)] for at in range(arguments.searches)]
    retriever = open_retriever(arguments.index)
    retriever.search(queries[:1], TOP_K)
    expected, latencies = {}, []
    start = time.perf_counter()
    for query in asked:
        began = time.perf_counter()
        (found,) = retriever.search([query], TOP_K)
        latencies.append(time.perf_counter() - began)
        expected[query] = [document.id for document in found]
    rows = [_row("direct", time.perf_counter() - start, latencies, 0)]
    with running_server(arguments.index, ["--mcp"], {}) as (address, _):
        HTTPRetriever(address).wait_until_ready()
        url = address.removesuffix("/retrieve") + MCP_PATH
        asyncio.run(_served(url, 1, asked[:50], expected))  # the first calls of a process are slow
        for number in arguments.sessions:
            found_in = asyncio.run(_served(url, number, asked, expected))
            rows.append(_row(f"{number} session{'s' * (number > 1)}", *found_in))
    for row in rows:
        row["of_direct"] = row["per_second"] / rows[0]["per_second"]
    write_json(arguments.out / "results.json", {"rows": rows})
    print_rows("searches over MCP", rows, COLUMNS)


async def _served(
    url: str, sessions: int, asked: Sequence[str], expected: dict[str, list[str]]
) -> tuple[float, list[float], int]:
    """Seconds in all, the latency of each search, and how many found other documents."""
    latencies: list[float] = []
    different, left = 0, iter(asked)  # which all sessions share
    ready, begin = asyncio.Barrier(sessions + 1), asyncio.Event()

    async def session() -> None:
        nonlocal different
        async with Client(url) as client:
            await ready.wait()
            await begin.wait()
            for query in left:
                began = time.perf_counter()
                result = await client.call_tool("search", {"query": query, "k": TOP_K})
                latencies.append(time.perf_counter() - began)
                found = (result.structured_content or {}).get("documents", [])
                different += [hit["id"] for hit in found] != expected[query]

    async with asyncio.TaskGroup() as tasks:
        for _ in range(sessions):
            tasks.create_task(session())
        await ready.wait()
        start = time.perf_counter()
        begin.set()
    return time.perf_counter() - start, latencies, different


def _row(arm: str, seconds: float, latencies: list[float], different: int) -> dict[str, Any]:
    middle, slow = np.percentile(latencies, [50, 99]) * 1000
    return {
        "arm": arm,
        "searches": len(latencies),
        "per_second": len(latencies) / seconds,
        "p50_ms": round(float(middle), 2),
        "p99_ms": round(float(slow), 2),
        "different": different,
    }


if __name__ == "__main__":
    run(main)
