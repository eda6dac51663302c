"""What is as large as a limit is taken, and one more is refused."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import HTTPException, Request

from biotune.serving.bodies import BodyReader, Upload
from biotune.serving.limits import Limits
from tests.serve_process import form


def read(limits: Limits, content: bytes, kind: str, *, claims_length: bool = True) -> list[Upload]:
    """The images of a request that arrives in one piece."""
    headers = [(b"content-type", kind.encode())]
    if claims_length:
        headers.append((b"content-length", str(len(content)).encode()))

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def images() -> list[Upload]:
        reader = BodyReader(limits)
        with reader.holding() as held:
            return await reader.read(Request({"type": "http", "headers": headers}, receive), held)

    return asyncio.run(images())


@pytest.mark.parametrize("claims_length", [True, False])
def test_a_body_may_have_just_as_many_bytes_as_the_limit(claims_length: bool) -> None:
    limits = Limits(max_body=1000)
    assert read(limits, b"x" * 1000, "image/png", claims_length=claims_length) == [
        Upload(None, b"x" * 1000)
    ]
    with pytest.raises(HTTPException, match="larger than 1,000 bytes") as refused:
        read(limits, b"x" * 1001, "image/png", claims_length=claims_length)
    assert refused.value.status_code == 413


def test_a_form_may_have_just_as_many_files_as_the_limit() -> None:
    images = [(f"{number}.png", bytes([number])) for number in range(4)]
    limits = Limits(max_files=3)
    assert read(limits, *form(images[:3])) == [Upload(*image) for image in images[:3]]
    with pytest.raises(HTTPException, match="more than 3 files") as refused:
        read(limits, *form(images))
    assert refused.value.status_code == 413
