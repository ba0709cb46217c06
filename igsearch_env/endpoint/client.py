"""An OpenAI-compatible server, asked over HTTP until it answers."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet, finalize

from igsearch_env.endpoint.errors import (
    ContextTooLongError,
    EndpointError,
    RequestRefusedError,
    ServerError,
    read_error,
)
from igsearch_env.extras import extra
from igsearch_env.text import read_json, without_logins

with extra("eval"):
    import httpx2
    import tenacity

MAX_BYTES = 16 << 20
"""Size of an answer; a longer one is refused while it arrives."""
ENCODINGS = ("", "identity", "gzip")
"""How an answer may be packed. Twice, or by a denser method, a few bytes could fill the memory."""
PASSING = (408, 409, 425, 429)
"""Statuses that may be over the next time, as those from 500 on may."""


class Endpoint:
    """A server of the OpenAI API, such as ``vllm serve``; any number of threads may ask at once.

    A request is repeated, after a pause that grows and is partly random, when the connection fails,
    a time limit is exceeded, the status may pass (408, 409, 425, 429, 500 and above), or the answer
    is not a JSON object with the field that is asked for. ``Retry-After`` is honoured up to
    ``longest_pause``. A refusal is not repeated (:mod:`igsearch_env.endpoint.errors`), whatever its
    status is.

    Args:
        url: The base, such as ``http://127.0.0.1:8000/v1``.
        api_key: Sent as a bearer token, if given.
        retries: How often a request is repeated.
        timeout: Seconds that a request may take as a whole, until the last byte of its answer.
        first_pause: Mean seconds before the first repetition; each further one waits twice as long.
        longest_pause: Most seconds before a repetition.

    Raises:
        ValueError: If an argument is out of range, or ``url`` is no HTTP address.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retries: int = 8,
        timeout: float = 600.0,
        first_pause: float = 0.5,
        longest_pause: float = 30.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"expected an address like http://127.0.0.1:8000/v1, got {url.rpartition('@')[2]!r}"
            )
        try:
            httpx2.URL(url)
        except httpx2.InvalidURL as error:
            shown = url.rpartition("@")[2]  # what stands before it may be a password
            raise ValueError(f"{shown!r} is not an address") from error
        times = (timeout, first_pause, longest_pause)
        if retries < 0 or not all(0 < seconds < math.inf for seconds in times):
            raise ValueError(
                "an endpoint needs retries >= 0 and finite times above 0, got "
                f"{retries}, {timeout}, {first_pause} and {longest_pause}"
            )
        self._address = url.rstrip("/")
        self.url = without_logins(self._address)  # for messages
        self._api_key, self._timeout = api_key, timeout
        self.retries = retries
        self.limit_field = "max_tokens"
        """The field of a request that limits an answer; some models know only another one."""
        self._longest_pause = longest_pause
        self._pause = tenacity.wait_random_exponential(2 * first_pause, max=longest_pause)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._sockets = WeakSet[socket.socket]()
        self._request = threading.local()  # until when the request of a thread may take
        headers = {"Accept-Encoding": "gzip"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )
        finalize(self, self._client.close).atexit = False  # where nobody closed it

    def models(self) -> list[str]:
        """The names of the models that it serves.

        Raises:
            EndpointError: If it gave no usable answer.
        """
        answer = self._ask("GET", "/models", None)
        found = answer.get("data")
        found = found if isinstance(found, list) else []
        names = [one.get("id") for one in found if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str)]

    def post(self, path: str, body: dict[str, Any], field: str = "") -> dict[str, Any]:
        """Send a request until it is answered.

        Args:
            path: Such as ``"/completions"``.
            body: The request.
            field: A list or an object without which an answer is garbage.

        Returns:
            The answer.

        Raises:
            EndpointError: If it gave no usable answer in ``retries + 1`` tries, or was closed.
            ContextTooLongError: If it refuses the request as too long.
            RequestRefusedError: If it refuses the request for another reason, or answers 500 or
                what is no JSON object however often it is asked, as servers do that stumble over
                one request.
        """
        return self._ask("POST", path, body, field)

    def close(self) -> None:
        """Give up what is being asked: no request is repeated, begun or waited for after this."""
        self._closed.set()
        with self._lock:
            for one in self._sockets:
                _hang_up(one)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, field: str = ""
    ) -> dict[str, Any]:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=self._wait,
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(_PassingError),
            reraise=True,
        )
        try:
            answer: dict[str, Any] = retrying(self._once, method, path, body, field)
        except _PassingError as error:
            if body is not None and error.status in (*range(200, 400), 500):
                raise RequestRefusedError(error.status, error.said, self.url) from error
            raise EndpointError(
                f"{self.url}{path} gave no answer in {self.retries + 1} tries ({error}); see that "
                "the server runs, or allow more tries"
            ) from error
        return answer

    def _once(
        self, method: str, path: str, body: dict[str, Any] | None, field: str
    ) -> dict[str, Any]:
        if self._closed.is_set():
            raise EndpointError(f"the connection to {self.url} was closed")
        try:
            response, content = self._read(method, path, body)
        except httpx2.TransportError as error:
            raise _PassingError(str(error) or type(error).__name__) from error
        except httpx2.DecodingError as error:  # it is not compressed as it says
            problem = f"the answer cannot be read ({error})"
            raise _PassingError(problem, status=200, said=ServerError(problem)) from error
        except RuntimeError as error:  # closed between the check above and the request
            raise EndpointError(f"the connection to {self.url} was closed") from error
        text = content.decode("utf-8", errors="replace")
        if self._api_key:  # which some servers repeat in their errors
            text = text.replace(self._api_key, "***")
        try:
            answer = read_json(text)
        except ValueError:
            answer = None
        status = response.status_code
        said = read_error(answer, text or "no reason") if status >= 400 else None
        if status == 200 and isinstance(answer, dict | list):
            said = read_error(answer)  # llama.cpp and proxies answer 200 all the same
            status = (said and said.status) or (400 if said else 200)
        if said is not None:
            if status != 429 and said.is_too_long(status):
                raise ContextTooLongError(status, said, self.url)
            if status >= 500 or status in PASSING:
                pause = response.headers.get("retry-after", "")  # seconds, or a date
                seconds = float(pause) if pause.isdecimal() else 0.0
                raise _PassingError(f"status {status}: {said.message}", seconds, status, said)
            raise RequestRefusedError(status, said, self.url)
        if not isinstance(answer, dict) or (field and not answer.get(field)):
            wanted = f" with {field!r}" if field else ""
            problem = f"the answer is not a JSON object{wanted}: {text[:80]!r}"
            raise _PassingError(problem, status=status, said=ServerError(problem))
        return answer

    def _read(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[httpx2.Response, bytes]:
        """One request and its whole answer, within limits of time and size."""
        self._request.end = time.monotonic() + self._timeout
        content = bytearray()
        try:
            with self._client.stream(
                method, f"{self._address}{path}", json=body, extensions={"trace": self._opened}
            ) as response:
                encoding = response.headers.get("content-encoding", "").lower()
                if encoding not in ENCODINGS:
                    told = f"the answer is packed as {encoding[:80]!r}, which was not asked for"
                    raise _PassingError(told, status=200, said=ServerError(told))
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_BYTES:
                        told = f"the answer is longer than {MAX_BYTES:,} bytes"
                        raise _PassingError(told, status=200, said=ServerError(told))
        except httpx2.ReadTimeout as error:
            raise _PassingError(f"no whole answer within {self._timeout} s") from error
        return response, bytes(content)

    def _opened(self, event: str, info: dict[str, Any]) -> None:
        """Limit the time of a new connection, and remember its socket for :meth:`close`."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            stream = info["return_value"]
            stream.read = _in_time(stream.read, self._request)
            with self._lock:
                opened = stream.get_extra_info("socket")
                self._sockets.add(opened)
                if self._closed.is_set():
                    _hang_up(opened)

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(seconds)  # closing ends the pause

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.pause if isinstance(error, _PassingError) else 0.0
        return max(self._pause(state), min(asked, self._longest_pause))


def _in_time(read: Callable[..., bytes], request: threading.local) -> Callable[..., bytes]:
    """Read until the end of the request's time.

    The client's own timeout begins anew with each read, so that a server that trickles, or sends
    one head after the other, would never meet it.
    """

    def limited(size: int, timeout: float | None = None) -> bytes:
        left = max(0.001, request.end - time.monotonic())
        return read(size, left if timeout is None else min(timeout, left))

    return limited


def _hang_up(opened: socket.socket) -> None:
    """Wake the thread that reads from a socket, which closing it would not do."""
    with suppress(OSError):  # it is closed, or was never connected
        socket.socket.shutdown(opened, socket.SHUT_RDWR)  # of TLS too, without a farewell


class _PassingError(Exception):
    """A failure that may be over the next time."""

    def __init__(
        self,
        reason: str,
        pause: float = 0.0,
        status: int = 0,
        said: ServerError = ServerError(""),  # noqa: B008, it is frozen
    ) -> None:
        super().__init__(reason)
        self.pause = pause
        self.status = status
        self.said = said
