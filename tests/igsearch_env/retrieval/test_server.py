from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from igsearch_env.episode import Document, Question
from igsearch_env.retrieval.base import fingerprint
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.http_line import HTTPRetrievalError
from igsearch_env.retrieval.server import RetrievalService, serve
from igsearch_env.retrieval.server_limits import ServerLimits
from igsearch_env.retrieval.wire import DIALECTS, Dialect
from igsearch_env.vector_env import SearchQAVectorEnv

ROOT = Path(__file__).resolve().parents[3]
PASSAGES = [
    Document("1", "Lima", "Lima is the capital of Peru."),
    Document("2", 'The "Who"', "A band.\nFrom London."),
    Document("3", "", "Untitled: a \ud800 broken letter, é and 日本."),
    Document("4", "Two\nlines", "The capital of nothing."),
]
LIMITS = ServerLimits(
    max_queries=4,
    max_characters=50,
    max_k=10,
    max_documents=35,
    max_bytes=2000,
    max_header_bytes=1000,
    max_seconds=3,
    max_connections=32,
)


class Slow(BM25Retriever):
    """Takes its time over every call; fails where a query says so."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        time.sleep(0.02)
        if "explode" in queries:
            raise MemoryError("too large")
        return super().search(queries, k)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., str]]:
    """Serves a retriever from a thread; returns its address."""
    stops: list[tuple[threading.Event, threading.Thread]] = []

    def run(load: Callable[[], Any], limits: ServerLimits = LIMITS) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        stop = threading.Event()
        service = RetrievalService(limits)
        thread = threading.Thread(target=serve, args=(service, load, listener, stop), daemon=True)
        thread.start()
        stops.append((stop, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield run
    for stop, thread in stops:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(start: Callable[..., str]) -> str:
    address = start(lambda: Slow.build(PASSAGES))
    HTTPRetriever(address).wait_until_ready(60)
    return address


def post(url: str, body: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return httpx2.post(f"{url}/retrieve", content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_finds_over_http_what_it_finds_in_process(url: str, dialect: Dialect) -> None:
    queries = ["capital", "band from London", "untitled é", "lines", "日本", "zebra"]
    with HTTPRetriever(url, dialect, batch=3) as retriever:
        found = retriever.search(queries, 3)
    assert found == BM25Retriever.build(PASSAGES).search(queries, 3)
    assert found[-1] == []


def test_a_dense_index_finds_the_same_documents_in_any_batch(
    start: Callable[..., str], dense: DenseRetriever, passages: list[Document]
) -> None:
    queries = [document.text for document in passages[:48]]
    direct = dense.search(queries, 3)
    url = start(lambda: dense, ServerLimits(max_characters=10_000, batch=16))
    with (
        HTTPRetriever(url, "skyrl", connections=48) as retriever,
        HTTPRetriever(url, batch=5) as other,
    ):
        retriever.wait_until_ready(60)
        for found in (retriever.search(queries, 3), other.search(queries, 3)):
            for mine, right in zip(found, direct, strict=True):
                assert [doc.id for doc in mine] == [doc.id for doc in right]
                assert [doc.score for doc in mine] == pytest.approx(
                    [d.score for d in right], abs=1e-5
                )


@pytest.mark.parametrize(
    ("body", "documents"),
    [
        ({"queries": ["capital"], "topk": 1}, 1),
        ({"queries": ["capital"]}, 2),
        ({"queries": ["capital"], "topk": None}, 2),
        ({"queries": ["capital"], "topk": 9}, 2),  # more than there are passages
        ({"query": "capital"}, 2),
        ({"query": "capital", "topk": 1}, 1),
        ({"queries": ["capital"], "topk": 1, "something": "else"}, 1),
    ],
)
def test_a_number_may_be_left_out(url: str, body: dict[str, Any], documents: int) -> None:
    (found,) = post(url, body).json()["result"]
    assert len(found) == documents
    assert found[0]["contents"] == '"Lima"\nLima is the capital of Peru.'  # bare: no scores


def test_rllm_is_answered_as_it_expects(url: str) -> None:
    for body in ({"query": "Peru", "top_k": 1}, {"query": "Peru", "top_k": None}):
        (found,) = post(url, body).json()["results"]
        assert found["id"] == "1"
        assert found["content"] == '"Lima"\nLima is the capital of Peru.'
        assert found["document"]["contents"] == found["content"]  # where its other client looks
        assert found["score"] > 0
    assert httpx2.get(f"{url}/health", timeout=60).json() == {"status": "ok"}


def test_no_queries_are_no_results(url: str) -> None:
    answer = post(url, {"queries": [], "topk": 3, "return_scores": True})
    assert (answer.status_code, answer.json()) == (200, {"result": []})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"queries": ["a"] * 5}, 400, "5 queries; send at most 4"),
        ({"queries": ["a" * 51]}, 400, "51 characters; send at most 50"),
        ({"queries": ["a"], "topk": 11}, 400, "topk = 11; set it from 1 to 10"),
        ({"queries": ["a"], "topk": -1}, 400, "topk: Input should be greater than or equal to 1"),
        ({"queries": ["a"], "topk": 0}, 400, "greater than or equal to 1"),
        ({"query": "a", "top_k": 0}, 400, "top_k: Input should be greater than or equal to 1"),
        ({"queries": ["a"], "topk": False}, 400, "topk: Input should be a valid integer"),
        ({"queries": ["a"], "topk": "3"}, 400, "topk: Input should be a valid integer"),
        ({"queries": ["a"], "topk": 3.0}, 400, "topk: Input should be a valid integer"),
        ({"queries": ["a"], "return_scores": 1}, 400, "return_scores: Input should be"),
        (b'{"query": "a", "topk": NaN}', 400, "topk: Input should be a valid integer"),
        (b'{"query": "a", "topk": 1e999}', 400, "topk: Input should be a valid integer"),
        (b'{"query": "a", "topk": -Infinity}', 400, "topk: Input should be a valid integer"),
        (b'{"query": "a", "topk": ' + b"9" * 1500 + b"}", 400, "set it from 1 to 10"),
        (b"[" * 2000, 400, ""),
        (b'{"query": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "query: Input should be"),
        ({"queries": ["a"] * 4, "topk": 9}, 400, "4 queries with topk = 9; their product"),
        ({"query": "a", "queries": ["a"]}, 400, "either 'queries', a list, or 'query'"),
        ({}, 400, "either 'queries', a list, or 'query'"),
        ({"queries": "a"}, 400, "valid list"),
        ({"queries": [None]}, 400, "valid string"),
        ({"query": "a", "topk": "many"}, 400, "valid integer"),
        ([], 400, ""),
        (b"{", 400, "JSON"),
        (b"\xff", 400, "parsing"),
        (b" " * 2001, 413, "at most 2000 bytes"),
        ({"queries": ["explode"]}, 500, "the search failed: too large"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(
    url: str, body: Any, status: int, message: str
) -> None:
    answer = post(url, body)
    assert answer.status_code == status, answer.text
    assert message in json.dumps(answer.json()).replace('\\"', '"')


def test_one_explosion_hurts_nobody_else(url: str) -> None:
    queries = ["capital", "explode", "band", "explode", "Peru", "London"] * 4
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda query: post(url, {"query": query}), queries))
    expected = [500 if query == "explode" else 200 for query in queries]
    assert [answer.status_code for answer in answers] == expected


def test_a_body_that_never_comes_is_not_waited_for(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_in_chunks_is_limited_too(url: str) -> None:
    chunks = (b" " * 500 for _ in range(5))
    assert httpx2.post(f"{url}/retrieve", content=chunks, timeout=60).status_code == 413


def sample(url: str, name: str) -> float:
    lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_concurrent_requests_share_batches_and_are_counted(url: str) -> None:
    names = {
        "queries": 'igsearch_queries_total{dialect="skyrl"}',
        "batches": "igsearch_batch_queries_count",
        "answered": 'igsearch_requests_total{status="200"}',
        "timed": "igsearch_request_seconds_count",
    }
    before = {key: sample(url, name) for key, name in names.items()}
    queries = [f"{word} {i}" for i in range(10) for word in ("capital", "band", "Peru")]
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda q: post(url, {"query": q, "topk": 2}), queries))
    direct = BM25Retriever.build(PASSAGES)
    for query, answer in zip(queries, answers, strict=True):
        (found,) = direct.search([query], 2)
        assert [item["id"] for item in answer.json()["result"][0]] == [doc.id for doc in found]
    counted = {key: sample(url, name) - before[key] for key, name in names.items()}
    assert counted["queries"] == counted["answered"] == counted["timed"] == 30
    assert counted["batches"] < 30
    assert sample(url, "igsearch_waiting_queries") == 0
    assert sample(url, "igsearch_ready") == 1


def test_it_lives_before_it_is_ready(start: Callable[..., str]) -> None:
    loaded = threading.Event()

    def load() -> BM25Retriever:
        assert loaded.wait(60)
        return BM25Retriever.build(PASSAGES)

    url = start(load)
    assert httpx2.get(f"{url}/health", timeout=60).status_code == 200
    ready = httpx2.get(f"{url}/ready", timeout=60)
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
    early = post(url, {"query": "capital"})
    assert early.status_code == 503
    assert early.headers["retry-after"] == "1"
    assert sample(url, "igsearch_ready") == 0
    loaded.set()
    HTTPRetriever(url).wait_until_ready(60)
    ready = httpx2.get(f"{url}/ready", timeout=60)
    index = fingerprint(BM25Retriever.build(PASSAGES))
    expected = {"status": "ready", "documents": 4, "index": index}
    assert (ready.status_code, ready.json()) == (200, expected)
    assert post(url, {"query": "capital"}).headers["x-index"] == index


def test_it_ends_where_the_index_cannot_be_loaded() -> None:
    def load() -> BM25Retriever:
        raise ValueError("the index is damaged")

    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ValueError, match="the index is damaged"):
        serve(RetrievalService(LIMITS), load, listener)


ENDLESS = """
import socket, threading
from igsearch_env.retrieval import server

class Endless:
    def search(self, queries, k):
        print("searching", flush=True)
        threading.Event().wait()

server.GRACE = 0.1
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server.serve(server.RetrievalService(server.ServerLimits()), Endless, listener)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_search_without_end_does_not_keep_the_process(how: signal.Signals) -> None:
    command = [sys.executable, "-c", ENDLESS]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        while httpx2.get(f"{url}/ready", timeout=60).status_code != 200:
            time.sleep(0.02)
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(post, url, {"query": "a"})
            assert process.stdout.readline() == "searching\n"
            process.send_signal(how)
            _, errors = process.communicate(timeout=60)
        assert answer.result().status_code == 503
        assert answer.result().json() == {"detail": "the server ends"}
    finally:
        process.kill()
        process.wait()
    assert "Exception in ASGI application" not in errors


def test_answers_are_not_held_back_by_the_kernel() -> None:
    listener, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()
    stop.set()
    serve(RetrievalService(LIMITS), lambda: BM25Retriever.build(PASSAGES), listener.dup(), stop)
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    listener.close()


def test_more_than_may_wait_are_told_to_come_back(start: Callable[..., str]) -> None:
    url = start(lambda: Slow.build(PASSAGES), ServerLimits(max_waiting=1, batch=1))
    HTTPRetriever(url).wait_until_ready(60)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda i: post(url, {"query": f"Peru {i}"}), range(16)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    with HTTPRetriever(url, "skyrl", attempts=20, max_wait=0.2) as retriever:
        found = retriever.search([f"Peru {i}" for i in range(16)], 1)
        assert [doc.id for (doc,) in found] == ["1"] * 16
        assert retriever.counts["status"] > 0


@pytest.mark.parametrize("name", ["max_queries", "max_characters", "max_k", "batch", "max_seconds"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"limit {name} must be at least 1 and finite, got 0"):
        ServerLimits(**{name: 0})


@pytest.mark.parametrize("top_k", [0, 11])
def test_a_default_that_would_be_refused_is_refused_at_the_start(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {top_k}, and the limits allow 1 to 10 .*max-k"):
        RetrievalService(LIMITS, top_k)


class TestAQueryThatIsRefused:
    """A query that the server does not take is an invalid turn, and no failure of the search."""

    LONG = "capital " * 20  # beyond LIMITS.max_characters

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_is_told_apart_from_those_that_failed(self, start: Any, dialect: Dialect) -> None:
        with HTTPRetriever(start(lambda: BM25Retriever.build(PASSAGES)), dialect) as retriever:
            retriever.wait_until_ready(60)
            with pytest.raises(HTTPRetrievalError) as raised:
                retriever.search(["Peru", self.LONG, "band", self.LONG], 1)
            found = raised.value.found
            assert [d and d[0].id for d in found] == ["1", None, "2", None]
            assert raised.value.refused == {1, 3}

    def test_is_no_excuse_for_a_server_that_has_answered_nothing(self, serve_answers: Any) -> None:
        """It may speak another dialect, and refuse everything."""
        server = serve_answers(lambda body: (422, b'{"detail": "field required"}'))
        with (
            HTTPRetriever(server.url, attempts=1) as retriever,
            pytest.raises(HTTPRetrievalError) as raised,
        ):
            retriever.search(["Peru", "band"], 1)
        assert raised.value.refused == set()

    def test_is_no_excuse_for_a_server_that_refuses_everything(self, serve_answers: Any) -> None:
        """It may have lost its index in mid-run: rollouts that did not search would be learned."""
        fine = 200, json.dumps({"result": [[{"id": "1", "contents": "x"}]]}).encode()
        answers = [fine]
        server = serve_answers(lambda body: answers.pop() if answers else (400, b"index gone"))
        with HTTPRetriever(server.url, attempts=1) as retriever:
            assert retriever.search(["Peru"], 1)
            with pytest.raises(HTTPRetrievalError) as raised:
                retriever.search(["band"], 1)
        assert raised.value.refused == set()

    @pytest.mark.parametrize(
        ("status", "refused"),
        [
            (400, True),
            (413, True),
            (414, True),
            (422, True),
            (401, False),
            (404, True),
            (403, False),
        ],
    )
    def test_by_its_status(self, serve_answers: Any, status: int, refused: bool) -> None:
        def answer(body: Any) -> tuple[int, bytes]:
            if "bad" in body["queries"]:
                return status, b"no"
            return 200, json.dumps({"result": [[{"id": "1", "contents": "x"}]]}).encode()

        with HTTPRetriever(serve_answers(answer).url, attempts=1) as retriever:
            assert retriever.search(["good"], 1)
            with pytest.raises(HTTPRetrievalError) as raised:
                retriever.search(["bad"], 1)
        assert (raised.value.refused == {0}) == refused

    def test_is_an_invalid_turn_and_the_episode_goes_on(self, start: Any) -> None:
        url = start(lambda: BM25Retriever.build(PASSAGES))
        with HTTPRetriever(url) as retriever:
            retriever.wait_until_ready(60)
            asked = [Question(name, f"{name}?", ("Lima",)) for name in ("a", "b")]
            env = SearchQAVectorEnv(2, questions=asked, retriever=retriever, top_k=1)
            env.reset(seed=0)
            turns = [f"<search> {query} </search>" for query in (self.LONG, "Peru")]
            texts, rewards, terminated, truncated, infos = env.step(turns)
            assert list(infos["action"]) == ["invalid", "search"]
            assert "does not take this query" in texts[0]
            assert not any([*terminated, *truncated, *rewards])
            refused, other = env.episodes
            assert (refused.retrieval_failed, other.retrieval_failed) == (False, False)
            assert (refused.searches, len(other.searches)) == ((), 1)  # it costs no search
            assert refused.steps[0].turn.text == turns[0]
            env.step(["<search> band </search>", "<answer> Lima </answer>"])
            assert env.episodes[0].searches[0].documents[0].id == "2"
