"""Servers on loopback: one that answers as a function says, and one that misbehaves on the wire."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
Behaviour = Callable[[socket.socket], None]


def trickle(connection: socket.socket) -> None:
    """Never ends its answer, and never pauses for long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in count():
        connection.sendall(f"X-{number}: y\r\n".encode())
        time.sleep(0.02)


class LoopbackServer(ThreadingHTTPServer):
    """Answers what ``answer`` gives for the body of each request, and keeps bodies and logins.

    GET gets ``status_of_get``.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.status_of_get = 404
        self.bodies: list[dict[str, Any]] = []
        self.logins: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.logins.append(self.headers["Authorization"])
        status, answer = self.server.answer(body)
        self._reply(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def do_GET(self) -> None:
        self._reply(self.server.status_of_get, b"{}")

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _read_request(connection: socket.socket) -> bool:
    """Read a whole request; whether there was one.

    A connection that is closed with bytes unread is reset, and the client may lose the answer.
    """
    read = b""
    while (end := read.find(b"\r\n\r\n")) < 0:
        if not (more := connection.recv(65536)):
            return False
        read += more
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", read[:end])
    missing = (int(found[1]) if found else 0) - len(read[end + 4 :])
    while missing > 0:
        if not (more := connection.recv(65536)):
            return False
        missing -= len(more)
    return True


class RawServer:
    """Meets each connection, once a request is read, with the next behaviour; the last stays."""

    def __init__(self, behaviours: tuple[Behaviour, ...]) -> None:
        self._behaviours = list(behaviours)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            more = len(self._behaviours) > 1
            behaviour = self._behaviours.pop(0) if more else self._behaviours[0]
            threading.Thread(target=self._meet, args=(connection, behaviour), daemon=True).start()

    def _meet(self, connection: socket.socket, behaviour: Behaviour) -> None:
        try:
            if _read_request(connection):
                behaviour(connection)
        except OSError:
            pass  # the client has gone

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()
