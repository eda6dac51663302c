"""The images in a request's body, read no further than the limits allow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from biotune.serving.limits import BODIES_IN_MEMORY

if TYPE_CHECKING:
    from biotune.serving.limits import Limits

FIELD = "files"
"""The name that images have in a multipart form."""


@dataclass
class Upload:
    """One image as a client sent it.

    Attributes:
        name: what the client calls it; to show, never a path to open. None for a raw body.
        content: what is in the file.
    """

    name: str | None
    content: bytes


@contextmanager
def refused_if_malformed() -> Iterator[None]:
    """A form that the parser cannot read is the client's fault."""
    try:
        yield
    except FormParserError as error:
        raise HTTPException(400, f"the multipart form is malformed ({error})") from error


def media_type(request: Request) -> tuple[str, bytes]:
    """The type of a body that may hold images, and a multipart form's boundary.

    Raises:
        HTTPException: 415 for other types, 400 for a form without a boundary.
    """
    header = request.headers.get("content-type", "application/octet-stream")
    kind, options = parse_options_header(header)
    name = kind.decode("latin-1")
    if name == "multipart/form-data":
        if not options.get(b"boundary"):
            raise HTTPException(400, "the multipart form has no boundary in its Content-Type")
        return name, options[b"boundary"]
    if name.startswith("image/") or name == "application/octet-stream":
        return name, b""
    raise HTTPException(
        415,
        f"send images as multipart/form-data ({FIELD}), or one as the body with the Content-Type "
        "image/* or application/octet-stream",
    )


class BodyReader:
    """Reads the bodies of all requests, and knows how much of them is in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @contextmanager
    def holding(self) -> Iterator[_Held]:
        """A count of what one request holds in memory, given back at the end."""
        held = _Held(self)
        try:
            yield held
        finally:
            self._held -= held.size

    def count(self, held: _Held, more: int) -> None:
        """Count bytes that have arrived.

        Raises:
            HTTPException: 413 if it is too much for one request, 503 if it is for all together.
        """
        held.size += more
        self._held += more
        if held.size > self._limits.max_body:
            raise HTTPException(413, self.too_large)
        if self._held > BODIES_IN_MEMORY * self._limits.max_body:
            raise HTTPException(
                503, "too many large requests at a time: try again", {"Retry-After": "1"}
            )

    @property
    def too_large(self) -> str:
        """What a client is told whose body is too large."""
        return f"the body is larger than {self._limits.max_body:,} bytes"

    async def read(self, request: Request, held: _Held) -> list[Upload]:
        """The images of one request, at least one.

        Raises:
            HTTPException: 400, 408, 413, 415, 422 or 503, with what is wrong.
            ClientDisconnect: if the client is gone.
        """
        kind, boundary = media_type(request)
        claimed = request.headers.get("content-length", "0")  # h11 has checked that it is a number
        if int(claimed) > self._limits.max_body:
            raise HTTPException(413, self.too_large)
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                chunks = self._chunks(request, held)
                if kind == "multipart/form-data":
                    return await self._read_form(chunks, boundary)
                return [Upload(None, b"".join([chunk async for chunk in chunks]))]
        except TimeoutError as error:
            late = f"the body did not arrive within {self._limits.body_timeout:g} seconds"
            raise HTTPException(408, late) from error

    async def _chunks(self, request: Request, held: _Held) -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            self.count(held, len(chunk))
            yield chunk

    async def _read_form(self, chunks: AsyncIterator[bytes], boundary: bytes) -> list[Upload]:
        form = _Form(self._limits.max_files)
        with refused_if_malformed():
            parser = form.parser(boundary)
            async for chunk in chunks:
                parser.write(chunk)
        if not form.ended:
            raise HTTPException(400, "the multipart form ends before its last boundary")
        if not form.uploads:
            raise HTTPException(422, f"the form has no images: send them as {FIELD}")
        return form.uploads


@dataclass
class _Held:
    reader: BodyReader
    size: int = 0


@dataclass
class _Form:
    """What a multipart form has held so far. Nothing is written to a disk."""

    max_files: int
    uploads: list[Upload] = field(default_factory=list)
    ended: bool = False
    _name: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _content: list[bytes] = field(default_factory=list)

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that fills this form."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header(data[start:end], b""),
                "on_header_value": lambda data, start, end: self._header(b"", data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": lambda data, start, end: self._content.append(data[start:end]),
                "on_part_end": self._close,
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        if len(self.uploads) >= self.max_files:
            raise HTTPException(413, f"more than {self.max_files} files in one request")
        self._disposition, self._content = b"", []

    def _header(self, name: bytes, value: bytes) -> None:
        self._name += name
        self._value += value

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise HTTPException(422, f"unknown part {name!r} of the form: send images as {FIELD}")
        file = options.get(b"filename", b"").decode("utf-8", "replace")
        self.uploads.append(Upload(file or None, b""))

    def _close(self) -> None:
        self.uploads[-1].content = b"".join(self._content)
        self._content = []

    def _end(self) -> None:
        self.ended = True
