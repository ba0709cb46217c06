from __future__ import annotations

import base64
import copy
import gc
import gzip
import json
import multiprocessing
import pickle
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from gymnasium.vector import SyncVectorEnv

from igsearch_env.env import SearchQAEnv
from igsearch_env.episode import Document
from igsearch_env.retrieval import http_line
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.http_line import HTTPRetrievalError
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.wire import DIALECTS, Dialect, make_answer
from igsearch_env.testing import check_retriever
from tests.igsearch_env.retrieval.loopback import trickle

FAST: dict[str, Any] = {"timeout": 20.0, "attempts": 3, "max_wait": 0.02}
IMPATIENT = FAST | {"timeout": 1.0}
GOOD = json.dumps(make_answer("search-r1", [[Document("1", "Lima", "In Peru.", 1.0)]])).encode()


def about(query: str, k: int = 3) -> list[Document]:
    """The documents that belong to a query and to no other."""
    return [Document(f"{query}-{i}", query, f"{query} {i}", float(-i)) for i in range(k)]


def echo(body: dict[str, Any]) -> tuple[int, Any]:
    """Answers in the dialect of the request, with documents that tell the query."""
    if "top_k" in body:
        return 200, make_answer("rllm", [about(body["query"], body["top_k"])])
    queries = body["queries"] if "queries" in body else [body["query"]]
    return 200, make_answer("search-r1", [about(query, body["topk"]) for query in queries])


def respond(content: bytes, length: int | None = None, status: str = "200 OK") -> bytes:
    size = len(content) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + content


def send(data: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.close()

    return behave


def silent(connection: socket.socket) -> None:
    connection.recv(1)  # until the client gives up


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


FAULTS = {
    "internal error": (send(respond(b"oops", status="500 Internal Server Error")), "status", 3),
    "not ready": (send(respond(b"{}", status="503 Service Unavailable")), "status", 3),
    # The second request asks whether it is the query that the server does not like.
    "not found": (send(respond(b"{}", status="404 Not Found")), "status", 2),
    "redirect": (send(respond(b"", status="302 Found")), "status", 1),
    "no json": (send(respond(b"<html>Bad gateway</html>")), "garbage", 3),
    "half of the json": (send(respond(GOOD[: len(GOOD) // 2])), "garbage", 3),
    "not even text": (send(respond(b"\xff\xfe\x00")), "garbage", 3),
    "nested json": (send(respond(b"[" * 100_000)), "garbage", 3),
    "json nested less": (send(respond(b"[" * 900 + b"]" * 900)), "garbage", 3),
    "not http": (send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "unreachable", 3),
    "cut off": (send(respond(GOOD, length=len(GOOD) + 10)), "unreachable", 3),
    "closed": (send(b""), "unreachable", 3),
    "reset": (reset, "unreachable", 3),
    "silent": (silent, "timeout", 3),
    "trickle": (trickle, "timeout", 3),
    "other dialect": (send(respond(b'{"results": []}')), "dialect", 1),
    "no list": (send(respond(b'{"result": []}')), "dialect", 1),
    "too many lists": (send(respond(b'{"result": [[], []]}')), "dialect", 1),
    "no text": (send(respond(b'{"result": [[{"document": {"id": "1"}}]]}')), "dialect", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_typed_failure_after_the_retries(misbehave: Any, name: str) -> None:
    behaviour, kind, attempts = FAULTS[name]
    server = misbehave(behaviour)
    options = IMPATIENT if kind == "timeout" else FAST
    with HTTPRetriever(server.url, **options) as retriever:
        with pytest.raises(HTTPRetrievalError, match="1 of 1 queries failed") as raised:
            retriever.search(["Peru"], 1)
        assert raised.value.kind == kind
        assert raised.value.found == (None,)
        assert retriever.counts == {"requests": attempts, kind: attempts, "failed": 1}


def test_no_search_outlasts_all_attempts_of_a_silent_server(misbehave: Any) -> None:
    options: dict[str, Any] = {"timeout": 0.2, "attempts": 2, "max_wait": 0.05, "connections": 1}
    with HTTPRetriever(misbehave(silent).url, "skyrl", **options) as retriever:
        with pytest.raises(HTTPRetrievalError, match="40 of 40 queries failed") as raised:
            retriever.search([f"q{i}" for i in range(40)], 1)
        assert raised.value.kind == "timeout"
        assert retriever.counts["failed"] == 40
        assert retriever.counts["requests"] <= 4  # 80 would have been tried, one after the other


def test_a_queue_that_moves_is_no_timeout(serve_answers: Any) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.15)
        return echo(body)

    options: dict[str, Any] = {"timeout": 2.0, "attempts": 1, "max_wait": 0.0, "connections": 1}
    with HTTPRetriever(serve_answers(slow).url, "skyrl", **options) as retriever:
        queries = [f"q{i}" for i in range(30)]  # 4.5 seconds of a queue; the patience is 4
        assert retriever.search(queries, 1) == [about(query, 1) for query in queries]
        assert retriever.counts == {"requests": 30}


def test_no_server_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    retriever = HTTPRetriever(f"http://127.0.0.1:{port}", **FAST)
    with pytest.raises(HTTPRetrievalError) as raised:
        retriever.search(["Peru", "Chile"], 1)
    assert raised.value.kind == "unreachable"
    assert raised.value.found == (None, None)
    assert retriever.counts == {"requests": 3, "unreachable": 3, "failed": 2}


@pytest.mark.parametrize(
    "name", [name for name, (_, _, attempts) in FAULTS.items() if attempts > 2]
)
def test_a_fault_that_passes_is_mended_by_a_retry(misbehave: Any, name: str) -> None:
    behaviour, kind, _ = FAULTS[name]
    server = misbehave(behaviour, send(respond(GOOD)))
    options = IMPATIENT if kind == "timeout" else FAST
    with HTTPRetriever(server.url, **options) as retriever:
        ((doc,),) = retriever.search(["Peru"], 1)
        assert doc == Document("1", "Lima", "In Peru.", 1.0)
        # A server that closes at once may reset the connection before its answer is read.
        failures = {what: n for what, n in retriever.counts.items() if what != "requests"}
        assert failures.keys() <= {kind, "unreachable"}
        assert sum(failures.values()) == retriever.counts["requests"] - 1 > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_query_gets_its_own_documents_in_order(serve_answers: Any, dialect: Dialect) -> None:
    def late(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(random.uniform(0, 0.02))
        return echo(body)

    server = serve_answers(late)
    queries = [f"q{i % 50}" for i in range(60)]
    with HTTPRetriever(server.url, dialect, batch=8) as retriever:
        assert retriever.search(queries, 2) == [about(query, 2) for query in queries]
    if dialect == "search-r1":
        asked = [query for body in server.bodies for query in body["queries"]]
        assert max(len(body["queries"]) for body in server.bodies) == 8
    else:
        asked = [body["query"] for body in server.bodies]
    assert sorted(asked) == sorted(set(queries))  # the repeated ones once


@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_keeps_the_promises_of_a_retriever(serve_answers: Any, dialect: Dialect) -> None:
    with HTTPRetriever(serve_answers(echo).url, dialect) as retriever:
        check_retriever(retriever, ["a", "b"])


def test_the_login_of_an_address_is_sent(serve_answers: Any) -> None:
    server = serve_answers(echo)
    for login in ("", "ann:s%40lt@"):
        with HTTPRetriever(server.url.replace("//", f"//{login}"), **FAST) as retriever:
            assert retriever.search(["Lima"], 1) == [about("Lima", 1)]
    assert server.logins == [None, "Basic " + base64.b64encode(b"ann:s@lt").decode()]


def test_a_login_may_stand_in_the_environment_instead(
    serve_answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve_answers(echo)
    monkeypatch.setenv("IGSEARCH_RETRIEVER_LOGIN", "bob:s:lt")
    for login in ("", "ann:own@"):  # that of the address comes first
        with HTTPRetriever(server.url.replace("//", f"//{login}"), **FAST) as retriever:
            assert pickle.loads(pickle.dumps(retriever)).search(["Lima"], 1)
            assert retriever.url == f"{server.url}/retrieve"
    sent = [base64.b64encode(login).decode() for login in (b"bob:s:lt", b"ann:own")]
    assert server.logins == [f"Basic {one}" for one in sent]


def test_no_message_holds_a_password(misbehave: Any) -> None:
    server = misbehave(send(respond(b"{}", status="404 Not Found")))
    with (
        HTTPRetriever(server.url.replace("//", "//ann:secret@"), **FAST) as retriever,
        pytest.raises(HTTPRetrievalError, match=f"{server.url}/retrieve answered 404") as caught,
    ):
        retriever.search(["Lima"], 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("login", ["address", "environment"])
@pytest.mark.parametrize("status", ["401 Unauthorized", "500 Oops", "200 OK"])
def test_a_password_that_the_server_repeats_is_hidden(
    misbehave: Any, monkeypatch: pytest.MonkeyPatch, login: str, status: str
) -> None:
    sent = base64.b64encode(b"ann:secret").decode()
    server = misbehave(send(respond(f"no secret, no {sent}".encode(), status=status)))
    url = server.url
    if login == "address":
        url = url.replace("//", "//ann:secret@")
    else:
        monkeypatch.setenv("IGSEARCH_RETRIEVER_LOGIN", "ann:secret")
    with (
        HTTPRetriever(url, **FAST) as retriever,
        pytest.raises(HTTPRetrievalError, match=r"no \*\*\*, no \*\*\*") as caught,
    ):
        retriever.search(["Lima"], 1)
    assert "secret" not in str(caught.value)
    assert sent not in str(caught.value)


def test_what_a_server_says_is_shown_in_one_line_without_control_characters(
    misbehave: Any,
) -> None:
    said = "\x1b[31mno\nerror: all is well\r"
    server = misbehave(send(respond(said.encode(), status="400 Bad Request")))
    with HTTPRetriever(server.url, **FAST) as retriever, pytest.raises(HTTPRetrievalError) as error:
        retriever.search(["Lima"], 1)
    assert str(error.value).endswith("answered 400: [31mno error: all is well")


@pytest.mark.parametrize("encoding", ["gzip, gzip", "deflate", "br", "zstd", "x"])
def test_an_answer_that_is_packed_in_another_way_is_not_unpacked(
    misbehave: Any, encoding: str
) -> None:
    body = gzip.compress(gzip.compress(b" " * 10**7))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Encoding: {encoding}"
    server = misbehave(send(f"{head}\r\n\r\n".encode() + body))
    with (
        HTTPRetriever(server.url, **FAST) as retriever,
        pytest.raises(HTTPRetrievalError, match=f"packed its answer as '{encoding}'"),
    ):
        retriever.search(["Lima"], 1)


def test_an_answer_has_a_limited_size_once_it_is_unpacked(
    misbehave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_line, "MAX_BYTES", 100_000)
    for head, body in (("", b" " * 10**6), ("Content-Encoding: gzip", gzip.compress(b" " * 10**8))):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}".strip()
        server = misbehave(send(f"{head}\r\n\r\n".encode() + body))
        with (
            HTTPRetriever(server.url, **FAST) as retriever,
            pytest.raises(HTTPRetrievalError, match="more than 100,000 bytes"),
        ):
            retriever.search(["Lima"], 1)


def test_fewer_documents_are_fine_and_more_are_cut(serve_answers: Any) -> None:
    sizes = {"none": 0, "one": 1, "many": 9}
    server = serve_answers(
        lambda body: (200, make_answer("search-r1", [about(q, sizes[q]) for q in body["queries"]]))
    )
    with HTTPRetriever(server.url) as retriever:
        found = retriever.search(list(sizes), 3)
    assert found == [[], about("one", 1), about("many", 3)]


def test_a_query_that_breaks_the_server_fails_alone(serve_answers: Any) -> None:
    def fragile(body: dict[str, Any]) -> tuple[int, Any]:
        return (500, b"oops") if "poison" in body["queries"] else echo(body)

    server = serve_answers(fragile)
    with HTTPRetriever(server.url, **FAST) as retriever:
        with pytest.raises(HTTPRetrievalError, match=r"1 of 3 queries.*500: oops") as raised:
            retriever.search(["a", "poison", "b"], 3)
        assert raised.value.found == (about("a"), None, about("b"))
        assert retriever.counts["failed"] == 1
        assert retriever.search(["a", "b"], 3) == [about("a"), about("b")]
        assert retriever.counts["cached"] == 2


def test_a_query_that_finds_blanks_fails_alone(serve_answers: Any) -> None:
    def fading(body: dict[str, Any]) -> tuple[int, Any]:
        found = [[Document("x", "", " ")] if q == "rare" else about(q) for q in body["queries"]]
        return 200, make_answer("search-r1", found)

    server = serve_answers(fading)
    with HTTPRetriever(server.url, **FAST) as retriever:
        with pytest.raises(HTTPRetrievalError, match=r"1 of 3 queries .* are blank") as raised:
            retriever.search(["a", "rare", "b"], 3)
        assert raised.value.kind == "dialect"
        assert raised.value.found == (about("a"), None, about("b"))


def test_one_lost_batch_leaves_the_others(serve_answers: Any) -> None:
    def forgetful(body: dict[str, Any]) -> tuple[int, Any]:
        return (200, b"garbage") if "c" in body["queries"] else echo(body)

    server = serve_answers(forgetful)
    with (
        HTTPRetriever(server.url, batch=2, **FAST) as retriever,
        pytest.raises(RetrievalError) as raised,
    ):
        retriever.search(["a", "b", "c", "d", "e"], 3)
    assert raised.value.found == (about("a"), about("b"), None, None, about("e"))


def test_the_cache_is_bounded_and_cannot_be_spoiled(serve_answers: Any) -> None:
    server = serve_answers(echo)
    with HTTPRetriever(server.url, cache_size=2) as retriever:
        retriever.search(["a", "b"], 3)[0].clear()
        assert retriever.search(["a"], 3) == [about("a")]
        assert len(server.bodies) == 1
        assert retriever.search(["a"], 2) == [about("a", 2)]  # another k; "b" is the oldest
        retriever.search(["a"], 3)
        assert len(server.bodies) == 2
        retriever.search(["b"], 3)
        assert len(server.bodies) == 3
        assert len(retriever._cache) == 2


def test_failures_are_not_cached(serve_answers: Any) -> None:
    broken = [True]
    server = serve_answers(lambda body: (500, b"oops") if broken else echo(body))
    with HTTPRetriever(server.url, **FAST) as retriever:
        with pytest.raises(HTTPRetrievalError):
            retriever.search(["a"], 3)
        broken.clear()
        assert retriever.search(["a"], 3) == [about("a")]


def test_many_threads_share_one_retriever(serve_answers: Any) -> None:
    server = serve_answers(echo)
    with HTTPRetriever(server.url, connections=4, cache_size=0) as retriever:

        def work(thread: int) -> bool:
            queries = [f"t{thread}-{i}" for i in range(5)]
            return all(retriever.search([q], 2) == [about(q, 2)] for q in queries)

        with ThreadPoolExecutor(64) as threads:
            assert all(threads.map(work, range(64)))
        assert retriever.counts == {"requests": 320}


def _search_in_child(retriever: HTTPRetriever, name: str, answers: Any) -> None:
    found = [retriever.search([f"{name}-{i}"], 2) == [about(f"{name}-{i}", 2)] for i in range(30)]
    answers.put(all(found))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_have_connections_of_their_own(serve_answers: Any, method: Any) -> None:
    server = serve_answers(echo)
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    with HTTPRetriever(server.url, cache_size=0) as retriever:
        retriever.search(["before"], 1)  # so that there is a connection to inherit
        names = ("one", "two")
        children = [
            context.Process(target=_search_in_child, args=(retriever, name, answers))
            for name in names
        ]
        for child in children:
            child.start()
        mine = [retriever.search([f"mine-{i}"], 2) == [about(f"mine-{i}", 2)] for i in range(30)]
        assert all(mine)
        assert [answers.get(timeout=60) for _ in names] == [True, True]
        for child in children:
            child.join(timeout=60)


def test_it_is_copied_as_itself_and_pickled_by_its_settings(serve_answers: Any) -> None:
    server = serve_answers(echo)
    with HTTPRetriever(server.url, "rllm", timeout=3.5, cache_size=7) as retriever:
        retriever.search(["a"], 1)
        assert copy.deepcopy(retriever) is retriever
        other = pickle.loads(pickle.dumps(retriever))
    assert (other.url, other.dialect, other.timeout) == (f"{server.url}/retrieve", "rllm", 3.5)
    assert other.cache_size == 7
    assert not other.counts
    assert other.search(["b"], 1) == [about("b", 1)]
    other.close()


def test_it_opens_again_after_close(serve_answers: Any) -> None:
    retriever = HTTPRetriever(serve_answers(echo).url)
    for query in ("a", "b"):
        assert retriever.search([query], 1) == [about(query, 1)]
        retriever.close()
        retriever.close()


@pytest.mark.parametrize(
    "behaviour", [silent, send(respond(b"", status="503 Not yet"))], ids=["on its way", "pausing"]
)
def test_close_ends_the_searches_of_other_threads(misbehave: Any, behaviour: Any) -> None:
    options: dict[str, Any] = {"attempts": 1000, "max_wait": 60.0, "connections": 2}
    retriever = HTTPRetriever(misbehave(behaviour).url, "skyrl", timeout=600.0, **options)
    failures: list[HTTPRetrievalError] = []

    def search() -> None:
        with pytest.raises(HTTPRetrievalError, match=r"6 of 6 queries failed: .* closed") as raised:
            retriever.search(["a", "b", "c", "d", "e", "a"], 1)
        failures.append(raised.value)

    for closed in (1, 2):
        before = retriever.counts["requests"]
        thread = threading.Thread(target=search, daemon=True)
        thread.start()
        while retriever.counts["requests"] < before + 2:
            time.sleep(0.001)
        retriever.close()
        thread.join(120)
        assert [failure.kind for failure in failures] == ["closed"] * closed
        assert retriever.counts["failed"] == 5 * closed


def test_a_search_that_meets_a_closed_line_fails(serve_answers: Any) -> None:
    with HTTPRetriever(serve_answers(echo).url) as retriever:
        line = retriever._open_line()
        line.close()
        with pytest.raises(HTTPRetrievalError, match="were closed") as raised:
            retriever.search(["a"], 1)
        assert raised.value.kind == "closed"


def test_environments_with_an_address_share_a_client_that_ends_with_them(
    serve_answers: Any,
) -> None:
    server = serve_answers(echo)
    envs = SyncVectorEnv([partial(SearchQAEnv, retriever=server.url) for _ in range(3)])
    envs.reset(seed=0)
    envs.step(["<search> Lima </search>"] * 3)
    (retriever,) = {env.unwrapped.engine.retriever for env in envs.envs}
    assert retriever.counts["cached"] > 0
    thread = retriever._line._thread
    assert open_retriever(f"{server.url}/other") is not retriever
    envs.close()
    del envs, retriever
    gc.collect()
    thread.join(120)
    assert not thread.is_alive()


def test_proxies_of_the_environment_are_not_used(
    serve_answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with HTTPRetriever(serve_answers(echo).url, **FAST) as retriever:
        assert retriever.search(["a"], 1) == [about("a", 1)]


def test_it_waits_until_the_server_is_ready(serve_answers: Any) -> None:
    loading = [True]
    server = serve_answers(lambda body: (503, b"loading") if loading else echo(body))
    threading.Timer(0.5, loading.clear).start()
    with HTTPRetriever(server.url, **FAST) as retriever:
        retriever.wait_until_ready(30)
        assert retriever.search(["a"], 1) == [about("a", 1)]
        loading.append(True)
        with pytest.raises(HTTPRetrievalError, match="503"):
            retriever.wait_until_ready(0.05)


def test_waiting_ends_at_once_where_it_cannot_help(serve_answers: Any) -> None:
    server = serve_answers(lambda body: (200, {"results": []}))
    with (
        HTTPRetriever(server.url) as retriever,
        pytest.raises(HTTPRetrievalError, match="does not speak search-r1") as raised,
    ):
        retriever.wait_until_ready()
    assert raised.value.kind == "dialect"


def test_no_query_is_no_request() -> None:
    retriever = HTTPRetriever("http://127.0.0.1:1")
    assert retriever.search([], 3) == []
    assert not retriever.counts


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("127.0.0.1:8000", {}, "expected http://HOST:PORT/retrieve, got '127"),
        ("ftp://host/x", {}, "expected http://HOST"),
        ("http://host", {"dialect": "verl"}, "unknown dialect 'verl'.*search-r1, skyrl, rllm"),
        ("http://host", {"timeout": 0}, "timeout > 0"),
        ("http://host", {"attempts": 0}, "attempts"),
        ("http://host", {"cache_size": -1}, "cache_size >= 0"),
    ],
)
def test_bad_arguments_are_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HTTPRetriever(url, **options)


def test_bad_searches_are_refused() -> None:
    retriever = HTTPRetriever("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="wrap it"):
        retriever.search("Peru", 1)
    with pytest.raises(ValueError, match="set k to at least 1"):
        retriever.search(["Peru"], 0)


def test_a_connection_that_is_closed_as_it_is_made_is_a_failed_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anyio reads the peer's name from a socket that is gone by then; it happens under load."""

    async def closed(*_: Any, **__: Any) -> Any:
        return getattr(None, "getpeername")  # noqa: B009 (as anyio does)

    monkeypatch.setattr("httpx2.AsyncHTTPTransport.handle_async_request", closed)
    with (
        HTTPRetriever("http://127.0.0.1:9/retrieve", **FAST) as retriever,
        pytest.raises(HTTPRetrievalError, match="closed a connection as it was made") as caught,
    ):
        retriever.search(["Peru"], 1)
    assert caught.value.kind == "unreachable"
