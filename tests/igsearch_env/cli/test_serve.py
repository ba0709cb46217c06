"""Real server processes on loopback: used by the environment, killed, restarted, checked."""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin

import httpx2
import pytest

from igsearch_env import BM25Retriever, SearchQAEnv, SearchQAVectorEnv, World
from igsearch_env.baselines import RandomQueryAgent
from igsearch_env.cli import __main__ as igsearch
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.retrieval.base import fingerprint
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.http_line import HTTPRetrievalError
from igsearch_env.retrieval.wire import DIALECTS, Dialect, make_answer
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 240  # more than anything here takes on a busy machine, less than a hang


class Server:
    """One process of igsearch serve."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "igsearch_env.cli", "serve", *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.read_until("serving ")
        self.url = self.lines[-1].split()[1].rstrip(";")

    def read_until(self, beginning: str) -> None:
        assert self.process.stdout is not None
        while not self.lines or not self.lines[-1].startswith(beginning):
            line = self.process.stdout.readline()
            assert line, f"the server ended: {self.lines}"
            self.lines.append(line)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(how)
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(3, people=60)


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "index"
    BM25Retriever.build(world.documents).save(folder)
    return folder


@pytest.fixture
def start(index: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the index; those that still run at the end are killed."""
    servers: list[Server] = []

    def run(*flags: str) -> Server:
        servers.append(Server("--index", str(index), "--port", *(flags or ("0",))))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="module")
def running(index: Path) -> Iterator[Server]:
    """A server that all tests use that do it no harm."""
    server = Server("--index", str(index), "--port", "0")
    server.read_until("ready: ")
    yield server
    server.kill()


def play(world: World, retriever: Any) -> list[Any]:
    engine = make_engine(world.train_questions[:24], retriever, pool=EvidencePool(seed=7))
    agent = RandomQueryAgent(seed=5)
    return collect(engine, agent, [*world.train_questions[:24]] * 2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_episodes_over_http_are_those_in_process(
    world: World, index: Path, running: Server, dialect: Dialect
) -> None:
    local = play(world, BM25Retriever.load(index))
    with HTTPRetriever(running.url, dialect) as retriever:
        assert play(world, retriever) == local
        assert retriever.counts["failed"] == 0
    documents = [doc for e in local for step in e.searches for doc in step.documents]
    assert len(documents) > 100
    assert any(gain is not None for e in local for gain in e.information_gains)


def test_both_environments_take_an_address(world: World, index: Path, running: Server) -> None:
    questions = world.train_questions[:8]
    person = questions[0].text.split(" of ")[-1].rstrip(" ?")
    turn = f"<search> {person} </search>"
    outcomes = []
    for retriever in (running.url, str(index)):
        single = SearchQAEnv(questions, retriever)
        single.reset(seed=3)
        several = SearchQAVectorEnv(num_envs=4, questions=questions, retriever=retriever)
        several.reset(seed=3)
        seen = [single.step(turn)[0], several.step([turn] * 4)[0]]
        outcomes.append((seen, single.unwrapped.episode, several.episodes))
    assert outcomes[0] == outcomes[1]
    assert person in outcomes[0][0][0]


class Load:
    """64 clients that search without a pause, and compare all they get with what is right.

    They stop at the end of the ``with`` block.
    """

    def __init__(self, world: World, index: Path, url: str, **options: Any) -> None:
        self.queries = [
            f"{a.title} {b.text}"
            for a, b in zip(
                world.documents,
                random.Random(0).sample(world.documents, len(world.documents)),
                strict=True,
            )
        ]
        self.right = BM25Retriever.load(index)
        self.retrievers = [
            HTTPRetriever(url, DIALECTS[i % 3], cache_size=0, connections=8, **options)
            for i in range(8)
        ]
        self.stop = threading.Event()
        self.answered = self.failed = self.wrong = 0
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(64)
        self._work = [self._threads.submit(self._client, number) for number in range(64)]

    def _client(self, number: int) -> None:
        rng = random.Random(number)
        while not self.stop.is_set():
            queries = rng.sample(self.queries, 3)
            found: list[Any]
            try:
                found = [*self.retrievers[number % 8].search(queries, 3)]
            except HTTPRetrievalError as error:
                found = [*error.found]
            expected = self.right.search(queries, 3)
            with self._changed:
                for mine, good in zip(found, expected, strict=True):
                    self.failed += mine is None
                    self.answered += mine is not None
                    self.wrong += mine is not None and list(mine) != good
                self._changed.notify_all()

    def wait_for_answers(self, more: int) -> None:
        """Wait until so many more queries were answered."""
        goal = self.answered + more
        self._wait_for(lambda: self.answered >= goal, "answers")

    def wait_for_failures(self) -> None:
        """Wait until a query was given up."""
        self._wait_for(lambda: self.failed > 0, "failures")

    def wait_for_refusals(self) -> None:
        """Wait until a client could not connect."""
        self._wait_for(
            lambda: sum(r.counts["unreachable"] for r in self.retrievers) > 0, "refusals"
        )

    def _wait_for(self, reached: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(reached, SECONDS), f"no {what}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for work in self._work:
            work.result(SECONDS)
        self._threads.shutdown()
        for retriever in self.retrievers:
            retriever.close()

    @property
    def counted(self) -> int:
        return sum(retriever.counts["failed"] for retriever in self.retrievers)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_64_clients_outlive_a_restart(
    world: World, index: Path, start: Callable[..., Server], how: signal.Signals
) -> None:
    port = str(free_port())
    first = start(port)
    first.read_until("ready: ")
    with Load(world, index, first.url, attempts=1000, max_wait=1.0) as load:
        load.wait_for_answers(200)
        first.kill(how)
        load.wait_for_refusals()
        start(port)
        load.wait_for_answers(400)
    assert load.wrong == 0
    assert load.failed == load.counted == 0  # patience was enough


def test_impatient_clients_count_what_they_lose(
    world: World, index: Path, start: Callable[..., Server]
) -> None:
    port = str(free_port())
    first = start(port)
    first.read_until("ready: ")
    with Load(world, index, first.url, attempts=2, max_wait=0.05) as load:
        load.wait_for_answers(200)
        first.kill()
        load.wait_for_failures()
        start(port)
        load.wait_for_answers(400)
    assert load.wrong == 0
    assert load.failed == load.counted > 0


def test_an_outage_fails_steps_and_passes(world: World, start: Callable[..., Server]) -> None:
    port = str(free_port())
    server = start(port)
    server.read_until("ready: ")
    retriever = HTTPRetriever(server.url, attempts=2, max_wait=0.05)
    env = SearchQAVectorEnv(num_envs=3, questions=world.train_questions[:8], retriever=retriever)
    env.reset(seed=0)
    turns = [f"<search> {question.text} </search>" for question in world.train_questions[:3]]
    _, _, _, _, infos = env.step(turns)
    assert infos["retrieval_failed"].tolist() == [False] * 3
    server.kill()
    before = retriever.counts["failed"]
    _, _, _, _, infos = env.step([turn.replace("?", "now ?") for turn in turns])
    assert infos["retrieval_failed"].tolist() == [True] * 3
    assert retriever.counts["failed"] - before == 3
    assert not any(infos["documents"])
    start(port).read_until("ready: ")
    _, _, _, _, infos = env.step([turn.replace("?", "again ?") for turn in turns])
    assert infos["retrieval_failed"].tolist() == [False] * 3
    assert [step.retrieval_failed for step in env.episodes[0].searches] == [False, True, False]
    retriever.close()


def metrics(server: Server) -> str:
    return httpx2.get(urljoin(server.url, "/metrics"), timeout=SECONDS).text


def test_a_request_on_its_way_is_answered_before_the_end(
    world: World, start: Callable[..., Server]
) -> None:
    server = start()
    server.read_until("ready: ")
    long = " ".join(doc.text for doc in world.documents[:50])
    queries = [f"{long} {number}" for number in range(1000)]  # seconds of search
    retriever = HTTPRetriever(server.url, batch=1000, attempts=1, timeout=SECONDS)
    with retriever, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(retriever.search, queries, 3)
        while not re.search(r"^igsearch_queries_total\S* 1000", metrics(server), re.MULTILINE):
            assert not answer.done()
        server.process.send_signal(signal.SIGTERM)
        assert len(answer.result(SECONDS)) == 1000
    assert server.process.wait(SECONDS) in (0, -signal.SIGTERM)


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    """Runs a subcommand in this process: its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    interval = sys.getswitchinterval()

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            igsearch.main(words)
        return int(ended.value.code or 0), *capsys.readouterr()

    yield run
    sys.setswitchinterval(interval)  # a server makes it shorter


def test_a_check_tells_the_dialects(running: Server, world: World, program: Program) -> None:
    code, out, err = program("check", running.url, "--query", world.documents[0].text)
    assert code == 0, out + err
    assert "wrong" not in out
    for dialect in DIALECTS:
        assert f"{dialect}" in out
    assert "dialect='search-r1'" in out


def test_a_check_of_no_server_is_an_error(program: Program) -> None:
    code, _, err = program("check", f"http://127.0.0.1:{free_port()}")
    assert code == 2
    assert "error: cannot reach http://127.0.0.1" in err
    assert err.count("http://") == 1
    assert "igsearch serve" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--index", "none"], "there is no index"),
        (["--index", "DAMAGED"], "is not an index: it has no manifest.json"),
        (["--index", "INDEX", "--top-k", "200"], "lower --top-k or raise --max-k"),
        (["--index", "INDEX", "--device", "cpu"], "is a BM25 index, which has no device"),
        (["--index", "INDEX", "--precision", "float16"], "index, which has no precision"),
        (["--corpus", "world", "--model", "x", "--search", "y"], "--model, --search: for a dense"),
        (["--index", "INDEX", "--workers", "2", "--mcp"], "leave --workers out"),
        (["--index", "DAMAGED", "--workers", "2"], "is not an index: it has no manifest.json"),
        (["--corpus", "world", "--port", "TAKEN"], "is taken; --port 0 picks a free one"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    index: Path, tmp_path: Path, running: Server, program: Program, flags: list[str], message: str
) -> None:
    taken = running.url.split(":")[2].split("/")[0]
    places = {"INDEX": str(index), "DAMAGED": str(tmp_path), "TAKEN": taken}
    code, _, err = program("serve", "--port", "0", *(places.get(flag, flag) for flag in flags))
    assert code == 2
    assert message in err.splitlines()[-1]


def test_a_missing_package_of_mcp_is_named_before_anything_is_served(
    index: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    monkeypatch.delitem(sys.modules, "igsearch_env.retrieval.mcp_server", raising=False)
    code, out, err = program("serve", "--index", str(index), "--port", "0", "--mcp")
    assert code == 2
    assert out == ""
    assert 'pip install "igsearch-env[mcp]"' in err.splitlines()[-1]


def test_a_dense_index_is_loaded_as_the_flags_say(
    world: World, minilm: str, tmp_path: Path, start: Callable[..., Server]
) -> None:
    index = tmp_path / "dense"
    moved = shutil.copytree(minilm, tmp_path / "model")
    encoder = SentenceEncoder(EncoderSettings(str(moved)), device="cpu")
    DenseRetriever.build(world.documents[:64], encoder, "IVF8,Flat", "nprobe=1").save(index)
    moved.rename(tmp_path / "moved")
    server = start(
        "0",
        "--index",
        str(index),
        "--model",
        minilm,
        "--search",
        "nprobe=8",
        "--precision",
        "bfloat16",
    )
    server.read_until("ready: ")
    with HTTPRetriever(server.url) as retriever:
        (found,) = retriever.search(["poet"], 64)
    assert len(found) == 64  # one list of eight would hold fewer


class Asking:
    """Clients that post a few queries at a time, and sort the answers by the index they name."""

    def __init__(self, url: str, queries: list[str], right: dict[str, Any], clients: int) -> None:
        self.url, self.queries, self.right = url, queries, right
        self.answers: Counter[str] = Counter()
        self.bad: list[Any] = []
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._threads = ThreadPoolExecutor(clients)
        self._work = [self._threads.submit(self._ask, number) for number in range(clients)]

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        with httpx2.Client(trust_env=False, timeout=SECONDS) as client:
            while not self._stop.is_set():
                asked = rng.sample(self.queries, 40)  # more than a batch
                body = {"queries": asked, "topk": 3, "return_scores": True}
                answer = client.post(self.url, json=body)
                name = answer.headers.get("x-index", "none")
                right = self.right.get(name)
                sound = answer.status_code == 200 and right is not None
                found = answer.json()["result"] if sound else []
                expected = [right[query] for query in asked] if sound and right else None
                with self._changed:
                    self.answers[name] += 1
                    if found != expected:
                        self.bad.append((answer.status_code, name, answer.text[:300]))
                    self._changed.notify_all()

    def wait_for(self, name: str, count: int) -> None:
        with self._changed:
            enough = self.answers[name] + count
            reached = self._changed.wait_for(
                lambda: self.answers[name] >= enough or self.bad, SECONDS
            )
            assert reached, (name, self.answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for work in self._work:
            work.result(SECONDS)
        self._threads.shutdown()


def answers_of(retriever: BM25Retriever, queries: list[str]) -> dict[str, Any]:
    """What the server answers to each query, by the query."""
    found = make_answer("search-r1", retriever.search(queries, 3))["result"]
    return dict(zip(queries, found, strict=True))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_index_is_replaced_under_load(
    world: World, tmp_path: Path, start: Callable[..., Server], workers: str
) -> None:
    """Every answer is as a whole that of the index that it names; none fails, none is mixed."""
    folder = tmp_path / "index"
    both = [world.documents, World.generate(4, people=60).documents]
    retrievers = [BM25Retriever.build(documents) for documents in both]
    queries = [f"{document.title} {document.text}" for some in both for document in some[:40]]
    first, second = map(fingerprint, retrievers)
    assert first
    assert second
    assert first != second
    right = {fingerprint(r): answers_of(r, queries) for r in retrievers}
    retrievers[0].save(folder)
    server = start("0", "--index", str(folder), "--workers", workers)
    server.read_until("ready: ")
    with Asking(server.url, queries, right, clients=8) as asking:
        asking.wait_for(first, 20)
        for name, retriever in ((second, retrievers[1]), (first, retrievers[0])):
            retriever.save(folder)
            server.process.send_signal(signal.SIGHUP)
            asking.wait_for(name, 20)
    assert asking.bad == []
    assert set(asking.answers) == {first, second}
    ready = httpx2.get(urljoin(server.url, "/ready"), timeout=SECONDS).json()
    assert ready == {"status": "ready", "documents": len(retrievers[0]), "index": first}
    assert 'igsearch_loads_total{outcome="done"} 3' in metrics(server)
    shutil.rmtree(folder)  # what cannot be loaded leaves the one before in place
    server.process.send_signal(signal.SIGHUP)
    while 'igsearch_loads_total{outcome="failed"} 1' not in metrics(server):
        assert server.process.poll() is None
    assert server.process.stdout is not None
    while "and the one before stays: " not in server.lines[-1]:
        server.lines.append(server.process.stdout.readline())
        assert server.lines[-1], f"the server ended: {server.lines}"
    assert not any("Traceback" in line for line in server.lines)
    body = {"query": queries[0], "topk": 3, "return_scores": True}
    answer = httpx2.post(server.url, json=body, timeout=SECONDS)
    assert answer.json()["result"] == [right[first][queries[0]]]


def search_processes(server: Server) -> list[int]:
    """The processes of a server that search."""
    threads = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    children = [one for thread in threads for one in thread.read_text(encoding="ascii").split()]
    lines = {int(one): Path(f"/proc/{one}/cmdline").read_bytes() for one in children}
    return [one for one, line in lines.items() if b"spawn_main" in line]


def test_search_processes_that_are_killed_are_replaced(
    world: World, index: Path, start: Callable[..., Server]
) -> None:
    retriever = BM25Retriever.load(index)
    name = fingerprint(retriever)
    assert name
    queries = [document.text for document in world.documents[:60]]
    server = start("0", "--workers", "2")
    server.read_until("ready: ")
    with Asking(server.url, queries, {name: answers_of(retriever, queries)}, 4) as asking:
        for _ in range(3):
            asking.wait_for(name, 10)
            before = search_processes(server)
            os.kill(before[0], signal.SIGKILL)
            asking.wait_for(name, 10)
    assert asking.bad == []
    children = [os.pidfd_open(one) for one in search_processes(server)]
    assert len(children) == 2
    assert server.kill(signal.SIGTERM) in (0, -signal.SIGTERM)
    for child in children:
        assert select.select([child], [], [], SECONDS)[0]  # it has ended, too
        os.close(child)


def test_an_index_that_was_replaced_is_not_opened_by_a_process_that_died(
    world: World, tmp_path: Path, start: Callable[..., Server]
) -> None:
    BM25Retriever.build(world.documents[:50]).save(tmp_path / "index")
    server = start("0", "--index", str(tmp_path / "index"), "--workers", "2")
    server.read_until("ready: ")
    BM25Retriever.build(world.documents[50:90]).save(tmp_path / "index")
    for one in search_processes(server):
        os.kill(one, signal.SIGKILL)
    answer = httpx2.post(server.url, json={"query": "poet"}, timeout=SECONDS)
    assert answer.status_code == 500
    assert "kill -HUP" in answer.json()["detail"]
    server.process.send_signal(signal.SIGHUP)
    server.lines.clear()
    server.read_until("ready: ")
    with HTTPRetriever(server.url, attempts=20) as retriever:
        assert retriever.search(["poet"], 3) == BM25Retriever.load(tmp_path / "index").search(
            ["poet"], 3
        )
