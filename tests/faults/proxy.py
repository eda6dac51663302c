"""Stands between a stage and a real MLflow server, and behaves as badly as networks do."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import urlsplit

Behaviour = Literal["forward", "slow", "error", "drop", "late"]
"""``slow``: each answer takes ten seconds. ``error``: 500 instead of every answer. ``drop``: every
third request is done by the server, and its answer never comes. ``late``: of the first
runs each is made a second after the connection broke, and asked for again."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a stage's."""

    protocol_version = "HTTP/1.1"
    network: BadNetwork

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the stage has gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def forward(self) -> None:
        network = self.network
        network.requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behaviour = network.behaviour
        if behaviour == "slow":
            time.sleep(10)
        if behaviour == "error":
            self.answer(500, b"{}", "application/json")
            return
        if behaviour == "late" and self.is_late():
            self.close_connection = True
            threading.Timer(1, self.ask, (body,)).start()
            return
        status, content, kind = self.ask(body)
        if behaviour == "drop" and network.requests % 3 == 0:
            self.close_connection = True
            return
        self.answer(status, content, kind)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    def ask(self, body: bytes) -> tuple[int, bytes, str]:
        """Have the server do it; status, content and kind of its answer."""
        upstream = http.client.HTTPConnection(self.network.target, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        return answer.status, content, answer.headers.get_content_type()

    def is_late(self) -> bool:
        if not self.path.endswith("/runs/create"):
            return False
        self.network.created += 1
        return self.network.created in (1, 3, 5)  # the pipeline's, the stage's and a genome's

    def answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class BadNetwork:
    """A proxy to a server; a context manager."""

    def __init__(self, server: str, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests = self.created = 0
        self.target = urlsplit(server).netloc
        handler = type("Handler", (_Handler,), {"network": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
