"""Bad input: each has its status code, the server goes on, and its memory comes back."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from biotune.serving.limits import Limits
from tests.serve_process import Reply, ServeProcess, form

Digits = list[tuple[str, bytes]]

GROWTH = 64
"""MiB that a server may hold more after a hail of bad input than after ordinary work."""


def raw(server: ServeProcess, pieces: Iterator[bytes], pause: float = 0.0) -> int | None:
    """Send bytes as they are; the status, or None for a connection closed without one."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        with suppress(ConnectionError):  # the server may have answered and hung up by now
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        with suppress(ConnectionError):
            answer = connection.recv(4096)
            return int(answer.split()[1]) if answer else None
    return None


def head(*lines: str) -> bytes:
    kind = "Content-Type: image/png"
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", kind, *lines, "", ""]).encode()


def narrow(height: int) -> bytes:
    """A PNG one pixel wide: resized in width first, it would take gigabytes."""
    file = BytesIO()
    Image.new("L", (1, height)).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of 900 million pixels, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def endless() -> Iterator[bytes]:
    yield head("Transfer-Encoding: chunked")
    for _ in range(1000):  # 64 MiB, if somebody takes them
        yield b"10000\r\n" + bytes(65536) + b"\r\n"


def slow() -> Iterator[bytes]:
    yield head("Content-Length: 1000")
    for _ in range(15):
        yield b"x"


def cut_form() -> Reply | tuple[bytes, str]:
    body, kind = form([("a.png", b"x" * 1000)])
    return body[:500], kind


HAIL: dict[str, tuple[int, Callable[[ServeProcess], int | None]]] = {
    "empty body": (422, lambda s: s.post(b"").status),
    "1 GB claimed": (413, lambda s: raw(s, iter([head("Content-Length: 1000000000")]))),
    "more than it claims": (
        422,
        lambda s: raw(s, iter([head("Content-Length: 3", "Connection: close") + b"abcdef"])),
    ),
    "no length that is a number": (400, lambda s: raw(s, iter([head("Content-Length: many")]))),
    "endless chunks": (413, lambda s: raw(s, endless())),
    "text as JPEG": (422, lambda s: s.post(b"no image", "image/jpeg").status),
    "text as text": (415, lambda s: s.post(b"no image", "text/plain").status),
    "a form as curl -d sends it": (
        415,
        lambda s: s.post(b"a=b", "application/x-www-form-urlencoded").status,
    ),
    "bomb": (422, lambda s: s.post(bomb()).status),
    "narrow and tall": (422, lambda s: s.post(narrow(4_000_000)).status),
    "bomb in a form": (422, lambda s: s.post_form([("b.png", bomb())]).status),
    "GET": (405, lambda s: s.get("/predict").status),
    "DELETE": (405, lambda s: s.request("DELETE", "/predict").status),
    "POST to the page": (405, lambda s: s.request("POST", "/", b"x").status),
    "slow client": (408, lambda s: raw(s, slow(), 0.1)),
    "truncated form": (400, lambda s: s.post(*cut_form()).status),
    "form without a boundary": (400, lambda s: s.post(b"x", "multipart/form-data").status),
    "no form at all": (400, lambda s: s.post(b"x" * 99, "multipart/form-data; boundary=b").status),
    "form without files": (422, lambda s: s.post_form([]).status),
    "too many files": (413, lambda s: s.post_form([("a.png", b"x")] * 65).status),
    "top_k of nothing": (422, lambda s: s.post(b"x", query="?top_k=0").status),
    "no HTTP": (400, lambda s: raw(s, iter([b"\x16\x03\x01 hello\r\n\r\n"]))),
    "endless head": (400, lambda s: raw(s, iter([b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000]))),
    "gone in the middle": (
        None,
        lambda s: gone(s, head("Content-Length: 1000") + b"x"),
    ),
}


def gone(server: ServeProcess, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)


@pytest.mark.parametrize("name", HAIL)
def test_bad_input_has_its_status(server: ServeProcess, name: str) -> None:
    status, send = HAIL[name]
    assert send(server) == status
    assert server.get("/healthz").status == 200


def test_an_image_as_narrow_as_can_be_is_refused_too(server: ServeProcess) -> None:
    """ONNX Runtime could not even compute its size."""
    refused = server.post(narrow(25_000_000))
    assert refused.status == 422
    assert "too narrow for its height" in refused.json["detail"]


def test_a_refusal_says_what_to_do(server: ServeProcess) -> None:
    assert "2,097,152 bytes" in server.post(bytes(2 * 2**20 + 1)).json["detail"]
    assert "25,000,000 pixels" in server.post(bomb()).json["detail"]
    assert server.request("DELETE", "/predict").headers["allow"] == "POST"
    assert server.post(bytes(2 * 2**20 + 1)).headers["connection"] == "close"


def noise(width: int, height: int) -> bytes:
    file = BytesIO()
    coarse = Image.effect_noise((width // 10, height // 10), 30).resize((width, height))
    coarse.convert("RGB").save(file, "JPEG", quality=40)
    return file.getvalue()


@pytest.mark.slow
def test_memory_comes_back_after_a_hail(served_model: Path, digits: Digits) -> None:
    with ServeProcess(served_model, ("--body-timeout", "1", "--max-body", "2")) as server:
        with ThreadPoolExecutor(16) as clients:

            def ordinary() -> None:
                replies = list(clients.map(server.post, [c for _, c in digits] * 8))
                assert {reply.status for reply in replies} == {200}

            ordinary()
            before = server.rss
            shots = [(status, send) for status, send in HAIL.values()] * 6
            sent = [(status, clients.submit(send, server)) for status, send in shots]
            large = [clients.submit(server.post, noise(4000 + 8 * n, 3000)) for n in range(8)]
            assert [answer.result() for _, answer in sent] == [status for status, _ in sent]
            assert {answer.result().status for answer in large} == {200}
            ordinary()
        deadline = time.monotonic() + 20
        while server.rss > before + GROWTH and time.monotonic() < deadline:
            time.sleep(0.5)
        assert server.rss <= before + GROWTH
        assert server.stop()[0] == 0


def test_a_full_queue_is_said_so_with_when_to_come_again(
    served_model: Path, digits: Digits
) -> None:
    options = ("--queue", "4", "--max-files", "4")
    large = noise(3000, 2000)
    with ServeProcess(served_model, options) as server, ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(server.post, [large] * 24))
        assert {reply.status for reply in replies} == {200, 503}
        refused = next(reply for reply in replies if reply.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert refused.json["detail"] == "the queue of 4 images is full: try again"
        assert server.post(digits[0][1]).status == 200


def test_limits_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="a queue of 3 images cannot take the 4 files"):
        Limits(queue=3, max_files=4)
    with pytest.raises(ValueError, match="max_batch must be at least 1, got 0"):
        Limits(max_batch=0)
