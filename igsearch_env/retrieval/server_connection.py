"""A connection of a web server that keeps to the limits: uvicorn bounds neither heads nor time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from igsearch_env.extras import extra
from igsearch_env.retrieval.server_limits import ServerLimits

with extra("serve"):
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits on the head of a request, its time, and their number.

    Args:
        limits: ``max_header_bytes``, ``max_bytes``, ``max_seconds`` and ``max_connections`` are
            read.
        observe: Called with status and seconds of each refusal.
        *args: What uvicorn gives a connection.
        **kwargs: What uvicorn gives a connection.
    """

    def __init__(
        self, limits: ServerLimits, observe: Callable[[int, float], None], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits, self._observe = limits, observe
        self._opened = self.loop.time()
        self._begun: float | None = None  # when the first byte of the request came
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes, self._body_bytes = True, 0, 0
        self._answering: Any = None  # uvicorn's cycle of the request that is being answered
        self._completed = 0  # requests that have arrived as a whole
        self._whole = False

    @property
    def working(self) -> bool:
        """Whether a request has arrived as a whole and is not answered yet."""
        return self._whole and self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, in place of a connection that has sent no request where there are too many."""
        super().connection_made(transport)
        self._expect()
        if len(self.connections) <= self._limits.max_connections:
            return
        others: list[LimitedConnection] = [
            one
            for one in self.connections
            if isinstance(one, LimitedConnection) and one is not self and not one.working
        ]
        if others:
            min(others, key=lambda one: one._opened)._hang_up()
        else:
            self._refuse(503, "too many connections; come again")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline, and let nothing be answered any more."""
        self._forget_deadline()
        if self._answering is not None:  # uvicorn knows of the last request alone
            self._answering.disconnected = True
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Read on, as long as head and time are within their limits."""
        if self._begun is None:
            self._expect()
        completed = self._completed
        super().data_received(data)
        if self._in_head and self._completed == completed:  # all of it belongs to one head
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_header_bytes:
                self._refuse_head()
        elif self._completed == completed:  # all of it belongs to one body, its framing included
            self._body_bytes += len(data)
            if self._body_bytes > 2 * self._limits.max_bytes:
                self._refuse_body()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; what comes after a body has no reader."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the size of a head that came in one piece, and that of the body to come."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.max_header_bytes:
            self._refuse_head()
            raise ValueError("the head is too large")  # ends the parsing
        announced = dict(self.headers).get(b"content-length", b"0")
        if int(announced) > self._limits.max_bytes:
            self._refuse_body()
            raise ValueError("the body is too large")
        self._in_head, self._head_bytes, self._body_bytes = False, 0, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is here as a whole: the next one has time and head of its own."""
        self._forget_deadline()
        self._begun, self._in_head, self._whole = None, True, True
        self._completed += 1
        super().on_message_complete()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._whole = False
        if self._begun is None:  # it came in one piece with the end of the request before
            self._expect()
        super().on_message_begin()

    def on_response_complete(self) -> None:
        """Give the client some time to read an answer that it does not take at once."""
        super().on_response_complete()
        self._opened = self.loop.time()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._limits.max_seconds, self._check_read)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless it was refused before."""
        if not self.transport.is_closing():
            self._refuse(400, msg)

    def _expect(self) -> None:
        self._begun = self.loop.time()
        self._forget_deadline()
        self._deadline = self.loop.call_later(self._limits.max_seconds, self._too_late)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._refuse(408, f"no whole request within {self._limits.max_seconds:g} s")

    def _refuse_head(self) -> None:
        limit = self._limits.max_header_bytes
        self._refuse(431, f"send at most {limit} bytes of address and header fields")

    def _refuse(self, status: int, reason: str) -> None:
        """Answer in place of the application, and close the connection."""
        if self.transport.is_closing():
            return
        self._observe(status, self.loop.time() - (self._begun or self.loop.time()))
        begun = self.cycle is not None and self.cycle.response_started
        if not begun or self.cycle.response_complete:  # an answer in between would be garbled
            body = b'{"detail": "%s"}' % reason.encode("ascii")
            fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d"
            self.transport.write(STATUS_LINE[status] + fields % len(body) + b"\r\n\r\n" + body)
        self._leave()
        self.transport.close()

    def _refuse_body(self) -> None:
        self._refuse(413, f"send at most {self._limits.max_bytes} bytes")

    def _check_read(self) -> None:
        if self.transport.get_write_buffer_size():
            self._hang_up()

    def _hang_up(self) -> None:
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        """Make room at once; the end of the connection is told to uvicorn later."""
        self._forget_deadline()
        self.connections.discard(self)
