"""Steps per second and their latency: the environment itself, and sessions with a server of it.

python -m igsearch_openenv.benchmark --sessions 1 64 --episodes 128

Every episode asks the question itself three times and answers. The server runs as a process of its
own on this machine. "different" counts episodes in which something was said or paid that the
environment itself does not say or pay.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from igsearch_env import SearchQAEnv
from igsearch_openenv.client import SearchQAClient
from igsearch_openenv.models import SearchQAAction

SEARCHES = 3
Said = dict[int, list[tuple[str, float | None]]]
"""For each seed the texts and rewards of an episode."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--episodes", type=int, default=128, help="of each row")
    arguments = parser.parse_args(argv)
    seconds, latencies, expected = _direct(arguments.episodes)
    rows = [("direct", seconds, latencies, 0)]
    with _server(max(arguments.sessions)) as url:
        asyncio.run(_served(url, 1, 8))  # the first steps of a process are slower
        for sessions in arguments.sessions:
            name = f"{sessions} session{'s' * (sessions > 1)}"
            seconds, latencies, said = asyncio.run(_served(url, sessions, arguments.episodes))
            different = sum(said[seed] != expected[seed] for seed in expected)
            rows.append((name, seconds, latencies, different))
    print("| | steps per second | of direct | p50 ms | p99 ms | different |")
    print("|---|---|---|---|---|---|")
    for name, seconds, latencies, different in rows:
        rate, first = len(latencies) / seconds, len(rows[0][2]) / rows[0][1]
        middle, slow = np.percentile(latencies, [50, 99]) * 1000
        numbers = f"{rate:.0f} | {rate / first:.2f} | {middle:.1f} | {slow:.1f} | {different}"
        print(f"| {name} | {numbers} |")


def turns(question: str) -> list[str]:
    """What is played."""
    return [f"<search> {question} </search>"] * SEARCHES + ["<answer> nobody </answer>"]


def _direct(episodes: int) -> tuple[float, list[float], Said]:
    latencies: list[float] = []
    said: Said = {}
    env = SearchQAEnv()
    start = time.perf_counter()
    for seed in range(episodes):
        text, _ = env.reset(seed=seed)
        said[seed] = [(text, None)]
        for turn in turns(env.episode.question.text):
            began = time.perf_counter()
            text, reward, *_ = env.step(turn)
            latencies.append(time.perf_counter() - began)
            said[seed].append((text, float(reward)))
    return time.perf_counter() - start, latencies, said


async def _served(url: str, sessions: int, episodes: int) -> tuple[float, list[float], Said]:
    latencies: list[float] = []
    said: Said = {}
    seeds = iter(range(episodes))

    async def session(client: SearchQAClient) -> None:
        for seed in seeds:  # which all sessions share
            result = await client.reset(seed=seed)
            said[seed] = [(result.observation.text, None)]
            for turn in turns(result.observation.info["question"]):
                began = time.perf_counter()
                result = await client.step(SearchQAAction(text=turn))
                latencies.append(time.perf_counter() - began)
                said[seed].append((result.observation.text, result.reward))

    clients = [SearchQAClient(url) for _ in range(sessions)]
    await asyncio.gather(*(client.connect() for client in clients))
    start = time.perf_counter()
    await asyncio.gather(*map(session, clients))
    seconds = time.perf_counter() - start
    await asyncio.gather(*(client.disconnect() for client in clients))
    return seconds, latencies, said


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
        # What it logs is read on: a full pipe would stop it.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
