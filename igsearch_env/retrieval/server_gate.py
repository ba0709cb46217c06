"""The gate of a web server: bodies of limited size, and requests counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from igsearch_env.extras import extra

with extra("serve"):
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Gate:
    """ASGI middleware that hands a request on once its body is there as a whole.

    Args:
        app: The application behind the gate.
        paths: Where requests with a body go; others are handed on as they are.
        max_bytes: Size of a body; a larger one is answered 413.
        observe: Called with status and seconds of each answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        max_bytes: int,
        observe: Callable[[int, float], None],
    ) -> None:
        self._app = app
        self._paths = paths
        self._max_bytes = max_bytes
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event, as ASGI has it."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._observe(message["status"], time.perf_counter() - start)
            await send(message)

        try:
            await self._handle(scope, receive, counted)
        except asyncio.CancelledError:  # the server ends, and this took longer than it waits
            if begun:
                raise
            refusal = JSONResponse({"detail": "the server ends"}, 503)
            await refusal(scope, receive, counted)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read(receive)
        except ConnectionError:
            return  # nobody waits for an answer
        if body is None:
            content = {"detail": f"send at most {self._max_bytes} bytes"}
            refusal = JSONResponse(content, 413, {"connection": "close"})
            await refusal(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None if it is too large.

        Raises:
            ConnectionError: If the other side has gone.
        """
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has gone")
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)
