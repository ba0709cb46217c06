"""Clients that send slowly, too much, or nothing, and the honest one beside them."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.server import RetrievalService, serve
from igsearch_env.retrieval.server_limits import ServerLimits

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [Document("1", "Lima", "Lima is the capital of Peru."), Document("2", "Oslo", "Norway")]
HEAD = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"query": "capital"}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class Held(BM25Retriever):
    """Answers searches for "wait" once it is let go."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        if "wait" in queries:
            self.waits.set()
            assert self.go_on.wait(120)
        return super().search(queries, k)


Serve = Callable[..., tuple[str, int]]


@pytest.fixture
def start() -> Iterator[Serve]:
    with ExitStack() as ends:

        def run(retriever: Any, **limits: Any) -> tuple[str, int]:
            listener, stop = socket.create_server(("127.0.0.1", 0), backlog=512), threading.Event()
            service = RetrievalService(ServerLimits(**limits))
            ready = threading.Event()

            def load() -> Any:
                ready.set()
                return retriever

            thread = threading.Thread(
                target=serve, args=(service, load, listener, stop), daemon=True
            )
            thread.start()
            ends.callback(thread.join, 60)
            ends.callback(stop.set)
            address = listener.getsockname()
            HTTPRetriever(f"http://127.0.0.1:{address[1]}").wait_until_ready(60)
            return address

        yield run


def connect(ends: ExitStack, address: tuple[str, int]) -> socket.socket:
    return ends.enter_context(socket.create_connection(address, timeout=60))


def rest(connection: socket.socket) -> bytes:
    """What still comes, until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


UNFINISHED = {
    "nothing": b"",
    "a letter": b"P",
    "half a head": HEAD,
    "half a field": HEAD + b"X-A: " + b"a" * 500,
    "half a body": HEAD + b"Content-Length: 9\r\n\r\n{",
    "line ends": b"\r\n\r\n",
    "a second request": WHOLE + HEAD,
}


def test_what_does_not_arrive_in_time_is_refused(start: Serve) -> None:
    address = start(BM25Retriever.build(DOCUMENTS), max_seconds=1)
    with ExitStack() as ends:
        connections = {name: connect(ends, address) for name in UNFINISHED}
        for name, connection in connections.items():
            connection.sendall(UNFINISHED[name])
        for name, connection in connections.items():
            answer = rest(connection)
            if name == "a second request":
                assert answer.startswith(b"HTTP/1.1 200 ")
                answer = answer[answer.index(b"}]]}") + 4 :]
            assert answer.startswith(b"HTTP/1.1 408 "), (name, answer)
            assert b"no whole request within 1 s" in answer


def test_heads_have_a_size_however_they_are_cut(start: Serve) -> None:
    address = start(BM25Retriever.build(DOCUMENTS), max_header_bytes=4096)
    field = b"X-%d: " + b"a" * 90 + b"\r\n"
    many = b"".join(field % i for i in range(60))
    for head in (
        HEAD + many + b"\r\n",  # whole, in one piece
        HEAD + many,  # many fields and no end
        HEAD + b"X-A: " + b"a" * 9000,  # a field without an end
        b"GET /" + b"a" * 9000,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with ExitStack() as ends:
            connection = connect(ends, address)
            connection.sendall(head)
            assert rest(connection).startswith(b"HTTP/1.1 431 "), head[:20]
    with ExitStack() as ends:  # a large body beside a small head is none of it
        connection = connect(ends, address)
        padded = b" " * 100_000 + BODY
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(padded) + padded + WHOLE)
        answers = connection.recv(1 << 16)
        while answers.count(b"HTTP/1.1 200 ") < 2:
            answers += (part := connection.recv(1 << 16))
            assert part, answers


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def test_bodies_have_a_size_whatever_is_announced_and_wrapped_around_them(start: Serve) -> None:
    address = start(BM25Retriever.build(DOCUMENTS), max_bytes=50_000)
    for request in (
        HEAD + b"Content-Length: 50001\r\n\r\n",  # and nothing of it
        HEAD + b"Content-Length: 50001\r\nExpect: 100-continue\r\n\r\n",
        b"POST /elsewhere HTTP/1.1\r\nContent-Length: 50001\r\n\r\n",
        CHUNKED + b"%x\r\n" % 60_000 + b" " * 60_000,
        CHUNKED + b"1;" + b"a" * 200_000,  # an extension without an end
        CHUNKED + b"1;a=b\r\n \r\n" * 20_000,
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 40_000,  # fields after the body
    ):
        with ExitStack() as ends:
            connection = connect(ends, address)
            connection.sendall(request)
            assert rest(connection).startswith(b"HTTP/1.1 413 "), request[:200]
    with ExitStack() as ends:
        connection = connect(ends, address)
        body = b"%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY)
        connection.sendall(CHUNKED + body + WHOLE)
        answers = b""
        while answers.count(b"HTTP/1.1 200 ") < 2:
            answers += (part := connection.recv(1 << 16))
            assert part, answers


def test_clients_that_leave_with_requests_in_a_row_make_no_noise(
    start: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = Held.build(DOCUMENTS)
    retriever.go_on, retriever.waits = threading.Event(), threading.Event()
    address = start(retriever)
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    body = b'{"query": "wait"}'
    held = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with ExitStack() as ends:
        connect(ends, address).sendall(held + WHOLE * 20)
        assert retriever.waits.wait(60)
    with HTTPRetriever(f"http://127.0.0.1:{address[1]}", "skyrl") as client:
        client.check_ready()  # answered after the connection above was seen to end
        retriever.go_on.set()
        assert [found.id for found in client.search(["capital"], 1)[0]] == ["1"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_is_no_http_is_refused(start: Serve) -> None:
    address = start(BM25Retriever.build(DOCUMENTS))
    with ExitStack() as ends:
        connection = connect(ends, address)
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_an_honest_client_gets_through_whoever_holds_connections(start: Serve) -> None:
    address = start(BM25Retriever.build(DOCUMENTS), max_connections=16)
    with ExitStack() as ends:
        held = [connect(ends, address) for _ in range(100)]
        for number, connection in enumerate(held):
            try:
                connection.sendall((b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{")[number % 3])
            except OSError:  # another one has its place already
                continue
        for _ in range(20):
            answer = httpx2.post(
                f"http://127.0.0.1:{address[1]}/retrieve",
                content=BODY,
                timeout=60,
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == 200
        assert rest(held[0]) == b""  # it has made room


def test_where_all_connections_work_a_further_one_is_sent_away(start: Serve) -> None:
    retriever = Held.build(DOCUMENTS)
    retriever.go_on, retriever.waits = threading.Event(), threading.Event()
    address = start(retriever, max_connections=2)
    body = b'{"query": "wait"}'
    waits = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with ExitStack() as ends:
        working = [connect(ends, address), connect(ends, address)]
        for connection in working:
            connection.sendall(waits)
        # Until both requests are there, a further connection takes the place of one that waits.
        answer = b""
        while not answer.startswith(b"HTTP/1.1 503 "):
            for place, connection in enumerate(working):
                connection.setblocking(False)
                try:
                    gone = connection.recv(1, socket.MSG_PEEK) == b""
                except BlockingIOError:
                    gone = False
                except ConnectionResetError:
                    gone = True
                connection.settimeout(60)
                if gone:
                    working[place] = connect(ends, address)
                    working[place].sendall(waits)
            further = connect(ends, address)
            further.settimeout(0.2)
            try:
                answer = further.recv(1000)
            except (TimeoutError, ConnectionResetError):
                answer = b""
        assert b"too many connections" in answer
        retriever.go_on.set()
        for connection in working:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_nobody_reads_is_not_kept(start: Serve) -> None:
    long = [Document(str(i), "", "word " + "x" * 100_000) for i in range(100)]
    address = start(BM25Retriever.build(long), max_seconds=1)
    body = b'{"queries": ["word", "word"], "topk": 100}'
    with ExitStack() as ends:
        connection = connect(ends, address)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        first = connection.recv(1)  # the answer has begun
        url = f"http://127.0.0.1:{address[1]}/metrics"
        while True:  # until the server has let it go
            try:
                connection.sendall(b"\r\n")
            except OSError:
                break
            assert httpx2.get(url, timeout=60).status_code == 200
        assert first == b"H"


FEW_DESCRIPTORS = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from igsearch_env import Document
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.server import RetrievalService, ServerLimits, serve
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
retriever = BM25Retriever.build([Document("1", "Lima", "capital")])
serve(RetrievalService(ServerLimits()), lambda: retriever, listener)
"""


def test_few_descriptors_are_enough_for_an_honest_client() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FEW_DESCRIPTORS], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with ExitStack() as ends, HTTPRetriever(f"http://127.0.0.1:{port}") as honest:
            honest.wait_until_ready(60)
            for _ in range(300):
                connect(ends, ("127.0.0.1", port)).sendall(HEAD)
            for i in range(20):
                assert honest.search([f"capital {i}"], 1)[0][0].id == "1"
    finally:
        process.kill()
        process.wait()
