"""Evaluating a real server on loopback that serves the shipped policy, and killing either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.igsearch_env.cli.evaluating import ROOT, evaluate, read_json, read_records, same_results
from tests.ports import free_port
from tests.scripted_server import ScriptedServer

pytest.importorskip("fastapi")
pytestmark = pytest.mark.timeout(1200)  # servers that start on a busy machine take their time
POLICY = "agents/world-tiny"
WORLD = ("--questions", "world-test:320", "--corpus", "world:320", "--threads", 1)


class Served:
    """The server, on a port of its own; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "requests.jsonl"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, *, elsewhere: bool) -> None:
        if elsewhere:
            self.port = free_port()
        command = [sys.executable, "tests/completion_server.py", "--policy", POLICY]
        command += ["--port", str(self.port), "--log", str(self.log)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        while True:
            assert self.process is not None
            assert self.process.poll() is None, "the server ended"
            try:
                httpx2.get(f"{self.url}/models", timeout=5).raise_for_status()
                return
            except httpx2.TransportError:
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def answered(self) -> int:
        return self.log.read_bytes().count(b"\n")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(tmp_path_factory.mktemp("served"))
    one.start(elsewhere=True)
    one.wait()
    yield one
    one.kill()


def requests_of(records: list[dict[str, Any]]) -> int:
    return sum(len(record["steps"]) for record in records)


def begin(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "igsearch_env.cli", "evaluate", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def until(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    while not reached():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.005)


def test_an_endpoint_gives_what_the_checkpoint_gives_though_both_sides_are_killed(
    served: Served, tmp_path: Path
) -> None:
    """16 requests at once; the server dies in the middle, and later so does the client."""
    run = (*WORLD, "--limit", 40, "--greedy")
    remote, out = ("--agent", served.url, "--concurrency", 16), tmp_path / "remote"
    remote = (*remote, "--retries", 99)  # however long the server takes to come back
    first = served.answered()
    process = begin(*run, *remote, "--out", out)
    try:
        until(process, lambda: served.answered() > first + 40)
        served.kill()
        before = served.answered()
        served.start(elsewhere=False)
        until(process, lambda: served.answered() > before + 25)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(read_records(out / "episodes.jsonl.partial"))
    assert 0 < kept < 40
    assert evaluate(*run, *remote, "--resume", "--out", out) == 0
    records = read_records(out / "episodes.jsonl")
    assert max(Counter(record["question"]["id"] for record in records).values()) == 1
    assert len(records) == 40
    assert read_json(out / "manifest.json")["runs"][-1]["resumed_after"] == kept
    # What was asked again is no more than what was under way at the two kills.
    assert served.answered() - first <= requests_of(records) + 16 + 16 * 5
    model = read_json(out / "manifest.json")["inputs"]["model"]
    assert model.pop("token_ids") is True
    assert model == {"name": POLICY, "api": "completions", "max_new_tokens": 16}
    # The server reads and returns token ids, so that nothing is lost on the way.
    assert evaluate(*run, "--agent", POLICY, "--out", tmp_path / "local") == 0
    assert (out / "results.json").read_bytes() == (tmp_path / "local/results.json").read_bytes()
    for one, other in zip(records, read_records(tmp_path / "local/episodes.jsonl"), strict=True):
        for step, same in zip(one["steps"], other["steps"], strict=True):
            assert step["turn"] == same["turn"]


def test_gains_scored_at_an_endpoint_are_those_of_the_checkpoint(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (*WORLD, "--limit", 8, "--greedy", "--information-gain")
    remote = ("--agent", served.url, "--scorer", "vllm")
    assert evaluate(*run, *remote, "--out", tmp_path / "remote") == 0
    assert ", 0 failed" in capsys.readouterr().out
    # A chunk of one question, as at an endpoint, draws the same counterfactual evidence.
    local = ("--agent", POLICY, "--batch-size", 1)
    assert evaluate(*run, *local, "--out", tmp_path / "local") == 0
    gains = [
        [step["information_gain"] for record in read_records(out) for step in record["steps"]]
        for out in (tmp_path / "remote/episodes.jsonl", tmp_path / "local/episodes.jsonl")
    ]
    known = [value for value in gains[1] if value is not None]
    assert any(abs(value) > 0.01 for value in known)
    assert [value is None for value in gains[0]] == [value is None for value in gains[1]]
    for one, other in zip(*gains, strict=True):
        assert one == (None if other is None else pytest.approx(other, abs=1e-4))
    manifest = read_json(tmp_path / "remote/manifest.json")
    assert manifest["inputs"]["scorer"] == "EndpointScorer"
    counts = manifest["runs"][0]["scorer"]
    assert 0 < counts["requests"] <= counts["answers"]
    assert counts["failed"] == 0


def test_sampling_at_an_endpoint_can_be_repeated(served: Served, tmp_path: Path) -> None:
    run = (*WORLD, "--limit", 6, "--samples", 2, "--agent", served.url, "--information-gain")
    assert evaluate(*run, "--out", tmp_path / "one", "--concurrency", 2) == 0
    assert evaluate(*run, "--out", tmp_path / "two", "--concurrency", 12) == 0
    assert same_results(tmp_path / "one", tmp_path / "two")
    records = read_records(tmp_path / "one" / "episodes.jsonl")
    assert [record["question"]["id"] for record in records[:6]] == [
        record["question"]["id"] for record in records[6:]
    ]
    first, second = (
        [step["turn"]["text"] for record in part for step in record["steps"]]
        for part in (records[:6], records[6:])
    )
    assert first != second
    micro = read_json(tmp_path / "one" / "results.json")["micro"]
    assert (micro["n"], "pass_at_2" in micro, "tokens" in micro) == (6, True, True)
    assert read_json(tmp_path / "one" / "manifest.json")["inputs"]["scorer"] == "UnigramScorer"
    chat = (
        *WORLD,
        "--limit",
        2,
        "--agent",
        served.url,
        "--api",
        "chat",
        "--model",
        "scripts",
        "--max-new-tokens",
        8,
    )
    assert evaluate(*chat, "--out", tmp_path / "chat") == 0
    assert "tokens" not in read_json(tmp_path / "chat" / "results.json")["micro"]


def test_an_endpoint_that_is_gone_is_told_in_one_line_and_nothing_is_lost(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    partial = out / "episodes.jsonl.partial"
    run = (*WORLD, "--limit", 24, "--greedy", "--out", out, "--concurrency", 4)

    def kill() -> None:
        while not partial.exists():
            time.sleep(0.005)
        served.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert evaluate(*run, "--agent", served.url, "--retries", 1) == 2
    killer.join()
    assert "gave no answer in 2 tries" in capsys.readouterr().err.splitlines()[-1]
    kept = len(read_records(partial))
    assert 1 <= kept < 24
    served.start(elsewhere=True)
    served.wait()
    assert evaluate(*run, "--agent", served.url, "--resume", "--retries", 3) == 0
    assert evaluate(*run, "--agent", "oracle", "--resume") == 2
    assert "has another agent" in capsys.readouterr().err.splitlines()[-1]
    assert len(read_records(out / "episodes.jsonl")) == 24
    assert read_json(out / "manifest.json")["runs"][-1]["resumed_after"] == kept


def test_questions_that_are_refused_count_as_not_answered_up_to_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server refuses every question with a word in it; a share of 0.05 of 20 is one."""
    server = ScriptedServer()
    run = (*WORLD, "--limit", 20, "--agent", server.url, "--model", "m", "--greedy")
    asked = read_records_of(*WORLD, "--limit", 20, "--agent", "direct", "--out", tmp_path / "all")
    blocked: list[str] = [asked[3]["question"]["text"]]

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if any(text in body["prompt"] for text in blocked):
            return 403, {"error": {"message": "blocked by the proxy"}}
        return 200, {"choices": [{"text": "<answer> Lima ", "finish_reason": "stop"}]}

    server.answer = answer
    try:
        assert evaluate(*run, "--out", tmp_path / "one") == 0
        said = capsys.readouterr().out
        assert "1 questions were refused and count as not answered" in said
        assert "blocked by the proxy" in said
        records = read_records(tmp_path / "one" / "episodes.jsonl")
        reasons = [{step["stop_reason"] for step in record["steps"]} for record in records]
        assert [i for i, found in enumerate(reasons) if found == {"refused"}] == [3]
        assert (records[3]["em"], read_json(tmp_path / "one" / "results.json")["micro"]["n"]) == (
            0.0,
            20,
        )
        assert read_json(tmp_path / "one" / "manifest.json")["runs"][-1]["refused"] == 1
        blocked.append(asked[7]["question"]["text"])
        assert evaluate(*run, "--out", tmp_path / "two") == 2
        assert "blocked by the proxy (2 questions so far)" in capsys.readouterr().err
        assert evaluate(*run, "--out", tmp_path / "two", "--resume", "--max-refused", 0.1) == 0
    finally:
        server.close()


def read_records_of(*arguments: object) -> list[dict[str, Any]]:
    assert evaluate(*arguments) == 0
    return read_records(Path(str(arguments[-1])) / "episodes.jsonl")
