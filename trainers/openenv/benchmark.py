"""Steps per second and their latency: the environment itself, and sessions with a server of it.

python -m igsearch_openenv.benchmark --sessions 1 64 --episodes 128

Every episode asks the question itself three times and answers. The server runs as a process of its
own on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from igsearch_env import SearchQAEnv
from igsearch_openenv.client import SearchQAClient
from igsearch_openenv.models import SearchQAAction

SEARCHES = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--episodes", type=int, default=128, help="of each row")
    arguments = parser.parse_args(argv)
    rows = [("direct", *_direct(arguments.episodes))]
    with _server(max(arguments.sessions)) as url:
        asyncio.run(_served(url, 1, 8))  # the first steps of a process are slower
        for sessions in arguments.sessions:
            name = f"{sessions} session{'s' * (sessions > 1)}"
            rows.append((name, *asyncio.run(_served(url, sessions, arguments.episodes))))
    print("| | steps per second | of direct | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, seconds, latencies in rows:
        rate, first = len(latencies) / seconds, len(rows[0][2]) / rows[0][1]
        middle, slow = np.percentile(latencies, [50, 99]) * 1000
        print(f"| {name} | {rate:.0f} | {rate / first:.2f} | {middle:.1f} | {slow:.1f} |")


def turns(question: str) -> list[str]:
    """What is played."""
    return [f"<search> {question} </search>"] * SEARCHES + ["<answer> nobody </answer>"]


def _direct(episodes: int) -> tuple[float, list[float]]:
    env = SearchQAEnv()
    latencies: list[float] = []
    start = time.perf_counter()
    for seed in range(episodes):
        env.reset(seed=seed)
        for turn in turns(env.episode.question.text):
            began = time.perf_counter()
            env.step(turn)
            latencies.append(time.perf_counter() - began)
    return time.perf_counter() - start, latencies


async def _served(url: str, sessions: int, episodes: int) -> tuple[float, list[float]]:
    latencies: list[float] = []
    seeds = iter(range(episodes))

    async def session(client: SearchQAClient) -> None:
        for seed in seeds:  # which all sessions share
            result = await client.reset(seed=seed)
            for turn in turns(result.observation.info["question"]):
                began = time.perf_counter()
                await client.step(SearchQAAction(text=turn))
                latencies.append(time.perf_counter() - began)

    clients = [SearchQAClient(url) for _ in range(sessions)]
    await asyncio.gather(*(client.connect() for client in clients))
    start = time.perf_counter()
    await asyncio.gather(*map(session, clients))
    seconds = time.perf_counter() - start
    await asyncio.gather(*(client.disconnect() for client in clients))
    return seconds, latencies


@contextmanager
def _server(sessions: int) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = (
        "import sys, uvicorn; from igsearch_openenv.server.app import make_app; "
        "uvicorn.run(make_app(sessions=int(sys.argv[1])), port=int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(sessions), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "Uvicorn running" not in (line := process.stderr.readline()):
            if not line:
                raise RuntimeError("the server ended before it began to serve")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
