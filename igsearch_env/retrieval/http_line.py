"""Requests to a retrieval server: made, awaited for a limited time, and read."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import weakref
from base64 import b64decode
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from igsearch_env.episode import Document
from igsearch_env.extras import extra
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.retrieval.wire import PATH, Dialect, WireError, make_request, read_answer
from igsearch_env.text import clean_text, read_json, without_logins

with extra("http"):
    import httpx2

Failure = Literal["unreachable", "timeout", "status", "garbage", "dialect", "closed"]
REPEATED_STATUSES = (408, 429)
"""Refusals that may be over the next time, as those from 500 on may."""
NOT_THE_QUERY = (401, 403, 407, 408, 425, 429)
"""Refusals of whoever asks, or for now. Others from 400 to 499 may be about what was asked."""
LOGIN = "IGSEARCH_RETRIEVER_LOGIN"
"""Environment variable with NAME:PASSWORD for servers whose address holds no login."""
MAX_BYTES = 64 << 20
"""Size of an answer once it is unpacked; a longer one is refused while it arrives."""
ENCODINGS = ("", "identity", "gzip")
"""How an answer may be packed. Twice, or by a denser method, a few bytes could fill the memory."""
_JSON = {"content-type": "application/json"}

Result = TypeVar("Result")


class HTTPRetrievalError(RetrievalError):
    """A search over HTTP that failed after its retries.

    Args:
        message: What happened.
        kind: ``"unreachable"`` (refused, reset, cut off), ``"timeout"``, ``"status"`` (not 200),
            ``"garbage"`` (not JSON), ``"dialect"`` (JSON of another shape) or ``"closed"`` (the
            retriever was closed meanwhile).
        found: See :class:`igsearch_env.RetrievalError`.
        passing: Whether the same request may succeed later.
        refused: See :class:`igsearch_env.RetrievalError`.
    """

    def __init__(
        self,
        message: str = "",
        kind: Failure = "unreachable",
        found: Sequence[Sequence[Document] | None] = (),
        passing: bool = True,
        refused: Iterable[int] = (),
    ) -> None:
        # It goes into logs, and may hold what a server said.
        line = " ".join(clean_text(without_logins(message)).split())
        super().__init__(line, found, refused)
        self.kind = kind
        self.passing = passing


class HTTPLine:
    """Connections to one server, and the event loop that they live in, on a thread of its own.

    They belong to the process that made them: two that share a socket after a fork would read each
    other's answers.

    Args:
        url: The server.
        timeout: Seconds that a request may take as a whole, until the last byte of its answer.
        connections: How many requests may be on their way at once.

    Attributes:
        free: Is held while a request is on its way.
        answered: When a search was answered last, in the time of the event loop.
    """

    def __init__(self, url: str, timeout: float, connections: int) -> None:
        self.process = os.getpid()
        self._url, self._timeout = url, timeout
        self.free = asyncio.Semaphore(connections)
        limits = httpx2.Limits(max_connections=connections)
        # The connections alone: what a client adds (cookies, hooks) costs time in every search.
        # Nor has it timeouts: they would hold for each read, and a server that trickles meets them.
        self._transport = httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)
        self._headers = _headers(httpx2.URL(url))
        self._secrets = _secrets(self._headers)
        self._loop = _new_loop()
        self.answered = self._loop.time()
        self._hang_up = weakref.finalize(self, _hang_up, self.process, self._loop, self._transport)
        self._hang_up.atexit = False  # the end of the process closes the connections anyway
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=_live, args=(self._loop,), daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[object, object, Result]) -> Result:
        """Wait for a coroutine that runs in the event loop; an interrupt cancels it.

        Raises:
            HTTPRetrievalError: If the line was closed before the end of it.
        """
        with self._lock:  # what comes after close() would never run
            if not self._hang_up.alive:
                work.close()
                raise HTTPRetrievalError(f"the connections to {self._url} were closed", "closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            message = f"the connections to {self._url} were closed during the search"
            raise HTTPRetrievalError(message, "closed") from None
        finally:
            future.cancel()

    async def request(self, method: str, url: str, body: object = None) -> httpx2.Response:
        """Make one request, with a body in JSON if there is one; its status may be any.

        Raises:
            HTTPRetrievalError: If the answer is not there, as a whole, in time.
        """
        content = None if body is None else json.dumps(body).encode("ascii")
        headers = self._headers if body is None else self._headers | _JSON
        try:
            async with asyncio.timeout(self._timeout):
                request = httpx2.Request(method, url, content=content, headers=headers)
                response = await self._transport.handle_async_request(request)
                try:
                    encoding = response.headers.get("content-encoding", "").lower()
                    if encoding not in ENCODINGS:
                        message = f"{url} packed its answer as {encoding[:80]!r}, unasked"
                        raise HTTPRetrievalError(message, "garbage")
                    answer = bytearray()
                    async for part in response.aiter_bytes():  # unpacked
                        answer += part
                        if len(answer) > MAX_BYTES:
                            message = f"{url} answered more than {MAX_BYTES:,} bytes"
                            raise HTTPRetrievalError(message, "garbage")
                finally:
                    await response.aclose()
                kept = {
                    name: value
                    for name, value in response.headers.items()
                    if name not in ("content-encoding", "content-length", "transfer-encoding")
                }
                return httpx2.Response(response.status_code, headers=kept, content=bytes(answer))
        except TimeoutError:
            message = f"{url} did not answer within {self._timeout} s"
            raise HTTPRetrievalError(message, "timeout") from None
        except httpx2.DecodingError as error:
            raise HTTPRetrievalError(f"{url} answered garbage: {error}", "garbage") from error
        except httpx2.RequestError as error:
            raise HTTPRetrievalError(f"{url}: {error or type(error).__name__}") from error
        except AttributeError as error:
            # anyio asks a socket for its peer that the server has closed in the same moment.
            if getattr(error, "name", None) != "getpeername":
                raise
            raise HTTPRetrievalError(f"{url} closed a connection as it was made") from error

    async def ask(self, dialect: Dialect, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search with one request; hold :attr:`free` meanwhile.

        Returns:
            At most ``k`` documents per query.

        Raises:
            HTTPRetrievalError: If there was no answer, or one that cannot be read.
        """
        response = await self.request("POST", self._url, make_request(dialect, queries, k))
        try:
            found = _read(self._url, dialect, response, len(queries))
        except HTTPRetrievalError as error:
            for secret in self._secrets:  # which some servers repeat in their errors
                error.args = (str(error).replace(secret, "***"),)
            raise
        self.answered = self._loop.time()
        return [documents[:k] for documents in found]

    def close(self) -> None:
        """Close the connections and end the thread; what still runs fails."""
        if self.process != os.getpid():
            return
        with self._lock:
            self._hang_up()
        self._thread.join()


def _headers(url: httpx2.URL) -> dict[str, str]:
    """What every request says of itself, with the login of http://NAME:PASSWORD@HOST or LOGIN."""
    headers = {"accept": "*/*", "accept-encoding": "gzip", "user-agent": "igsearch-env"}
    name, password = url.username, url.password
    if not url.userinfo:
        name, _, password = os.environ.get(LOGIN, "").partition(":")
    if not name:
        return headers
    login = httpx2.BasicAuth(name, password)
    asked = next(login.auth_flow(httpx2.Request("GET", url)))
    return headers | {"authorization": asked.headers["authorization"]}


def _secrets(headers: Mapping[str, str]) -> list[str]:
    """A login as it is sent, and its password."""
    _, _, sent = headers.get("authorization", "").partition(" ")
    _, _, password = b64decode(sent).decode().partition(":")
    return [one for one in (sent, password) if one]


def _new_loop() -> asyncio.AbstractEventLoop:
    """That of uvloop where it is installed, which is faster; there is none for Windows."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
    return loop


def _live(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _hang_up(
    process: int, loop: asyncio.AbstractEventLoop, transport: httpx2.AsyncHTTPTransport
) -> None:
    """End a line from any thread, the garbage collector's too: without waiting."""
    if process == os.getpid():
        asyncio.run_coroutine_threadsafe(_end(transport), loop)


async def _end(transport: httpx2.AsyncHTTPTransport) -> None:
    loop = asyncio.get_running_loop()
    try:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await transport.aclose()
    finally:
        loop.stop()


def _read(
    url: str, dialect: Dialect, response: httpx2.Response, queries: int
) -> list[list[Document]]:
    status = response.status_code
    if status != 200:
        passing = status >= 500 or status in REPEATED_STATUSES
        message = f"{url} answered {status}: {response.text[:200]}"
        about_query = 400 <= status < 500 and status not in NOT_THE_QUERY
        refused = (0,) if about_query and queries == 1 else ()
        raise HTTPRetrievalError(message, "status", passing=passing, refused=refused)
    try:
        return read_answer(dialect, read_json(response.content), queries)
    except WireError as error:
        message = f"{url} does not speak {dialect}: {error}"
        raise HTTPRetrievalError(message, "dialect", passing=False) from error
    except ValueError as error:  # no JSON, not even text, or absurdly nested
        message = f"{url} answered no JSON: {response.content[:60]!r}"
        raise HTTPRetrievalError(message, "garbage") from error


def retrieve_url(url: str) -> str:
    """The address to post to; a bare host gets the path that all dialects share.

    Raises:
        ValueError: If it is no address of a web server.

    >>> retrieve_url("http://127.0.0.1:8000")
    'http://127.0.0.1:8000/retrieve'
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        known = known and not any(mark.isspace() for mark in url)
    except ValueError:  # the port is no number, or half a bracket of an IPv6 address
        known = False
    if not known:
        shown = url.rpartition("@")[2]  # what stands before it may be a password with a slash
        raise ValueError(f"expected http://HOST:PORT/retrieve, got {shown!r}")
    return urlunsplit(parts._replace(path=PATH)) if parts.path in ("", "/") else url
