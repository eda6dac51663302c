"""A real ``biotune serve``, in a process of its own on the loopback interface."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tests.imports import ROOT


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ServeProcess:
    """One server; a context manager that ends it."""

    model: Path
    options: tuple[str, ...] = ()
    program: tuple[str, ...] = (sys.executable, "-m", "biotune")
    port: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        command = [*self.program, "serve", str(self.model), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", "--threads", "1", *self.options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        said = self.said_until("http://")
        self.port = int(said.rpartition(":")[2])
        deadline = time.monotonic() + 60
        while self.get("/readyz").status != 200:
            assert time.monotonic() < deadline, "the server does not become ready"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate(timeout=30)

    def said_until(self, words: str) -> str:
        """Read what it prints; the first line with these words."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([self.process.stderr], [], [], 1)[0]:
                line = self.process.stderr.readline()
                assert line, "the server ended"
                if words in line:
                    return line.strip()
        raise AssertionError(f"the server did not say {words!r}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def rss(self) -> float:
        """Resident memory in MiB."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self, sig: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; its exit code, and what it still said."""
        self.process.send_signal(sig)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            # Who refuses a body does not read it to its end; the answer is there all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            named = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, named, reply.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, content: bytes, kind: str = "image/png", query: str = "") -> Reply:
        """One image as the body."""
        return self.request("POST", f"/predict{query}", content, {"Content-Type": kind})

    def post_form(self, images: list[tuple[str, bytes]], query: str = "") -> Reply:
        """Images as a form, each with a name."""
        body, kind = form(images)
        return self.post(body, kind, query)


def form(images: list[tuple[str, bytes]], part: str = "files") -> tuple[bytes, str]:
    """A multipart form, and its Content-Type."""
    boundary = uuid4().hex
    body = b""
    for name, content in images:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        disposition = f'Content-Disposition: form-data; name="{part}"; filename="{quoted}"'
        body += f"--{boundary}\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
