"""A retriever as a web server, for this environment's client and for other trainers.

``POST /retrieve`` understands the dialects of :mod:`igsearch_env.retrieval.wire` and answers in the
one it was asked in; the header ``x-index`` says which index the whole answer comes from. ``GET
/health`` says that the process lives, ``GET /ready`` whether the index is loaded, ``GET /metrics``
what has happened, in Prometheus' text format. A SIGHUP loads the index anew. Where it is asked to,
the server also answers the Model Context Protocol (:mod:`igsearch_env.retrieval.mcp_server`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sized
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from igsearch_env.episode import Document
from igsearch_env.extras import extra
from igsearch_env.retrieval.base import Retriever, fingerprint
from igsearch_env.retrieval.batching import Found, MicroBatcher, Overloaded
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.search_processes import SearchProcesses
from igsearch_env.retrieval.server_connection import LimitedConnection
from igsearch_env.retrieval.server_gate import Gate
from igsearch_env.retrieval.server_limits import ServerLimits
from igsearch_env.retrieval.server_metrics import ServerMetrics
from igsearch_env.retrieval.wire import DEFAULT_TOP_K, PATH, Dialect, make_answer
from igsearch_env.text import clean_text

with extra("serve"):
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, Response
    from pydantic import BaseModel, Field, StrictBool, StrictInt
    from starlette.routing import BaseRoute

if TYPE_CHECKING:
    from igsearch_env.retrieval.mcp_server import DocumentsById

log = logging.getLogger(__name__)

GRACE = 10
"""Seconds that requests on their way have once the server is asked to end."""

INDEX_HEADER = "x-index"
"""Header of an answer that names the index that it comes from."""

OTHER_FILES = 64
"""Descriptors that are kept for other files than connections."""


class RetrieveRequest(BaseModel):
    """A request in any of the dialects."""

    queries: list[str] | None = None
    query: str | None = None
    topk: StrictInt | None = Field(None, ge=1)
    top_k: StrictInt | None = Field(None, ge=1)
    return_scores: StrictBool = False

    @property
    def dialect(self) -> Dialect:
        """Follows from the names of the fields."""
        if self.query is None:
            return "search-r1"
        return "rllm" if "top_k" in self.model_fields_set else "skyrl"


@dataclass(frozen=True)
class _Open:
    """A retriever that is searched: everything that an answer comes from."""

    batcher: MicroBatcher
    size: int | None
    fingerprint: str | None
    documents: DocumentsById | None
    end: Callable[[], None]

    async def finish(self) -> None:
        """Answer what was asked, and close."""
        await self.batcher.finish()
        self.close()

    def close(self) -> None:
        """End what searches, without waiting for it."""
        self.batcher.close()
        self.end()


def _nothing() -> None:
    """What there is to end of a retriever in this process."""


class RetrievalService:
    """Answers requests once it has a retriever.

    Args:
        limits: What it puts up with.
        top_k: Documents per query of a request that does not say how many.
        mcp: Whether agents can search and read documents by the Model Context Protocol, too.

    Raises:
        ValueError: If its limits do not allow that many.
    """

    def __init__(
        self, limits: ServerLimits, top_k: int = DEFAULT_TOP_K, *, mcp: bool = False
    ) -> None:
        if not 1 <= top_k <= limits.max_k:
            raise ValueError(
                f"top_k is {top_k}, and the limits allow 1 to {limits.max_k} documents per query: "
                "lower --top-k or raise --max-k"
            )
        self.limits = limits
        self.top_k = top_k
        self.mcp = mcp
        self.metrics = ServerMetrics()
        self.metrics.waiting.set_function(lambda: self._open.batcher.waiting if self._open else 0)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._open: _Open | None = None

    def open(self, retriever: Retriever | SearchProcesses) -> None:
        """Begin to answer from a retriever, or go over to another one.

        Requests that came before are answered from the one before, which is closed then.

        Raises:
            ValueError: If documents are to be read by their ids, and the retriever has none.
        """
        before, self._open = self._open, self._opened(retriever)
        self.metrics.ready.set(1)
        if before is not None and self.loop is not None:
            asyncio.run_coroutine_threadsafe(before.finish(), self.loop)

    def _opened(self, retriever: Retriever | SearchProcesses) -> _Open:
        documents, close = None, _nothing
        if isinstance(retriever, SearchProcesses):
            if self.mcp:
                raise ValueError("the tools of --mcp read documents in the server: no --workers")
            searchers, size = retriever.searchers, retriever.size
            name, close = retriever.fingerprint, retriever.close
        else:
            if self.mcp:
                from igsearch_env.retrieval.mcp_server import DocumentsById  # needs the extra mcp

                documents = DocumentsById(retriever)
            searchers = [getattr(retriever, "search_rows", retriever.search)]
            size = len(retriever) if isinstance(retriever, Sized) else None
            name = fingerprint(retriever)
        limits, observe = self.limits, self.metrics.batch_queries.observe
        batcher = MicroBatcher(searchers, limits.batch, limits.max_waiting, observe)
        return _Open(batcher, size, name, documents, close)

    @property
    def ready(self) -> bool:
        """Whether it has a retriever to answer with."""
        return self._open is not None

    @property
    def size(self) -> int | None:
        """How many documents it answers from, where the retriever knows."""
        return self._open.size if self._open else None

    @property
    def fingerprint(self) -> str | None:
        """Of the retriever; see :func:`igsearch_env.retrieval.base.fingerprint`."""
        return self._open.fingerprint if self._open else None

    def close(self) -> None:
        """End what searches, without waiting for it."""
        if self._open is not None:
            self._open.close()

    async def retrieve(self, request: RetrieveRequest) -> Response:
        """Answer one request.

        Raises:
            HTTPException: 400 if it cannot be answered, 503 if it cannot be yet, or not now, and
                500 if the search failed.
        """
        if (request.queries is None) == (request.query is None):
            raise HTTPException(400, "expected either 'queries', a list, or 'query', a string")
        queries = [request.query] if request.query is not None else request.queries or []
        now = self._ready()  # the whole answer comes from this one, whatever is opened meanwhile
        k = request.topk or request.top_k
        found = await self._search(now, queries, k, request.dialect)
        answer = make_answer(request.dialect, found, request.return_scores)
        text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        # Halves of surrogate pairs, which UTF-8 cannot write, are written as JSON escapes them.
        content = text.encode("utf-8", "backslashreplace")
        headers = {} if now.fingerprint is None else {INDEX_HEADER: now.fingerprint}
        return Response(content, headers=headers, media_type="application/json")

    async def search(self, queries: list[str], k: int | None, source: str) -> Found:
        """The documents of each query.

        Args:
            queries: The queries.
            k: How many documents for each; None for the server's default.
            source: The dialect or protocol that they came by, for the metrics.

        Raises:
            HTTPException: As for :meth:`retrieve`.
        """
        return await self._search(self._ready(), queries, k, source)

    async def _search(self, now: _Open, queries: list[str], k: int | None, source: str) -> Found:
        queries, k = self._check(queries, k or self.top_k, now.size)
        self.metrics.queries.labels(source).inc(len(queries))
        try:
            return await now.batcher.search(queries, k) if queries else []
        except Overloaded as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except Exception as error:
            log.exception("a search for %d queries failed", len(queries))
            raise HTTPException(500, f"the search failed: {error}") from error

    def document(self, name: str) -> Document:
        """The document of an id.

        Raises:
            HTTPException: 404 if there is none, and as for :meth:`retrieve`.
        """
        documents = self._ready().documents
        assert documents is not None  # only asked where there is the protocol for it
        try:
            return documents[name]
        except KeyError:
            short = name if len(name) <= 80 else name[:80] + "..."
            raise HTTPException(
                404, f"no document has the id {short!r}; search gives ids"
            ) from None
        except CorruptIndexError as error:
            log.exception("a document could not be read")
            raise HTTPException(500, str(error)) from error

    def _ready(self) -> _Open:
        if self._open is None:
            raise HTTPException(503, "the index is still loading", {"Retry-After": "1"})
        return self._open

    def _check(self, queries: list[str], k: int, size: int | None) -> tuple[list[str], int]:
        """The queries, and how many documents for each: no more than there are."""
        limits = self.limits
        if len(queries) > limits.max_queries:
            raise HTTPException(
                400, f"got {len(queries)} queries; send at most {limits.max_queries}"
            )
        longest = max(map(len, queries), default=0)
        if longest > limits.max_characters:
            raise HTTPException(
                400, f"got a query of {longest} characters; send at most {limits.max_characters}"
            )
        if not 1 <= k <= limits.max_k:
            raise HTTPException(400, f"got topk = {k}; set it from 1 to {limits.max_k}")
        if len(queries) * k > limits.max_documents:
            raise HTTPException(
                400,
                f"got {len(queries)} queries with topk = {k}; their product may be "
                f"{limits.max_documents} at most: send fewer queries per request",
            )
        queries = [clean_text(query) for query in queries]
        return queries, k if size is None else min(k, size)


def create_app(service: RetrievalService, host: str = "127.0.0.1") -> FastAPI:
    """The web application around a service.

    Args:
        service: Answers requests.
        host: Where it listens. On this machine alone, agents must name it by an address of this
            machine: no web page can then make a browser speak the Model Context Protocol to it.
    """
    paths = [PATH]
    routes: list[BaseRoute] = []
    running: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    if service.mcp:
        from igsearch_env.retrieval.mcp_server import MCP_PATH, make_mcp_server

        tools = make_mcp_server(service)
        routes = tools.streamable_http_app(
            streamable_http_path=MCP_PATH,
            json_response=True,
            stateless_http=True,  # nothing is kept between calls, so nothing can be mixed up
            max_request_body_size=service.limits.max_bytes,
            host=host,
        ).routes
        running = tools.session_manager.run
        paths.append(MCP_PATH)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.loop = asyncio.get_running_loop()
        async with running():
            yield
        service.close()

    app = FastAPI(title="igsearch-env retriever", lifespan=lifespan, routes=routes)

    @app.post(PATH)
    async def retrieve(request: RetrieveRequest) -> Response:
        return await service.retrieve(request)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        if not service.ready:
            return JSONResponse({"status": "loading"}, 503)
        found = {"documents": service.size, "index": service.fingerprint}
        return JSONResponse({"status": "ready", **found})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text())

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without what was sent: it may be large, or a number that JSON cannot hold.
        wrong = [
            f"{'.'.join(map(str, one['loc'][1:])) or 'request'}: {one['msg']}"
            for one in error.errors()[:5]
        ]
        return JSONResponse({"detail": "; ".join(wrong)}, 400)

    app.add_middleware(Gate, paths, service.limits.max_bytes, service.metrics.observe_request)
    return app


def serve(
    service: RetrievalService,
    load: Callable[[], Retriever | SearchProcesses],
    listener: socket.socket,
    stop: threading.Event | None = None,
) -> None:
    """Serve until SIGINT, SIGTERM or ``stop``; SIGHUP loads the retriever anew.

    Requests that are on their way then have :data:`GRACE` seconds; the rest is answered 503. A
    search that takes longer goes on in its thread, which the end of the process does not wait for.

    Args:
        service: Answers requests.
        load: Gives the retriever. It runs beside the server, so that ``/health`` answers at once.
            Where it fails once there is a retriever, that one stays.
        listener: A bound socket.
        stop: Ends the server, where it does not run in the main thread.

    Raises:
        Exception: What ``load`` raised; the server ends then.
    """
    # Otherwise the body of an answer waits for the client to acknowledge its head, 40 ms and more:
    # asyncio does not recognise the connections of a listener that it did not open as TCP.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limits = replace(service.limits, max_connections=_room(service.limits.max_connections))
    connection: Any = partial(LimitedConnection, limits, service.metrics.observe_request)
    config = uvicorn.Config(
        create_app(service, listener.getsockname()[0]),
        http=connection,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)
    failures: list[Exception] = []
    loading = threading.Lock()

    def fill() -> None:
        with loading:
            try:
                service.open(load())
                service.metrics.loads.labels("done").inc()
            except Exception as error:
                service.metrics.loads.labels("failed").inc()
                if service.ready:
                    expected = isinstance(error, ValueError | OSError | ImportError)
                    reason = " ".join(str(error).split()) or type(error).__name__
                    log.error(  # where the cause is a fault of the program, its place is of use
                        "the index could not be loaded anew, and the one before stays: %s",
                        reason,
                        exc_info=None if expected else error,
                    )
                    return
                failures.append(error)
                server.should_exit = True

    def fill_beside(*_: object) -> None:
        threading.Thread(target=fill, daemon=True).start()

    def end(stop: threading.Event) -> None:
        stop.wait()
        server.should_exit = True

    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, fill_beside)
    fill_beside()
    if stop is not None:
        threading.Thread(target=end, args=(stop,), daemon=True).start()
    server.run(sockets=[listener])
    for failure in failures:
        raise failure


def _room(connections: int) -> int:
    """How many connections the process can hold, beside files that it needs."""
    if find_spec("resource") is None:  # Windows
        return connections
    resource: Any = import_module("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = connections + OTHER_FILES
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == unlimited else max(1, min(connections, soft - OTHER_FILES))
