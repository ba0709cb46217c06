"""A real HTTP server on loopback that answers whatever a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedServer:
    """Answers what ``answer`` returns for a body: a status with a body, or None to hang up."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[int, dict[str, Any]], tuple[int, Any] | None]
        self.more: dict[str, str] = {}
        self.most = self.now = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(
                    json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
                )

            def reply(self, body: dict[str, Any]) -> None:
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                time.sleep(outer.pause)
                found = outer.answer(number, body)
                with outer._lock:
                    outer.now -= 1
                if found is None:
                    self.close_connection = True
                    return
                status, content = found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in outer.more.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        class Http(ThreadingHTTPServer):
            request_queue_size = 128  # clients that connect at once

            def handle_error(self, *arguments: Any) -> None:
                """Say nothing of clients that no longer wait."""

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def says(self, text: str | None, reason: str = "stop", **more: Any) -> None:
        choice = {"text": text, "message": {"content": text}, "finish_reason": reason, **more}
        self.answer = lambda number, body: (200, {"choices": [choice]})

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
