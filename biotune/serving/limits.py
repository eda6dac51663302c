"""What one server takes on: every limit that a client can run into."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Final

BODIES_IN_MEMORY: Final = 8
"""All requests that are being read or answered may hold this many times ``max_body`` bytes."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server; each one has a status code of its own when it is passed.

    At worst a server needs some 60 bytes of memory for each of ``max_pixels``, and for bodies
    ``BODIES_IN_MEMORY`` times ``max_body``.

    Attributes:
        max_batch: images computed together, at least 1.
        max_wait: seconds that an image waits for others that are still being decoded.
        queue: images accepted and not yet answered (503), no less than ``max_files``.
        max_body: bytes of one request's body (413).
        max_pixels: of one image (422), and of one batch.
        max_files: images in one request (413).
        body_timeout: seconds in which a body must have arrived (408).
        decoders: threads that decode images.
    """

    max_batch: int = 32
    max_wait: float = 0.005
    queue: int = 512
    max_body: int = 32 * 2**20
    max_pixels: int = 25_000_000
    max_files: int = 64
    body_timeout: float = 30.0
    decoders: int = min(4, os.cpu_count() or 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_wait" else 1
            if not value >= least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}")
        if self.queue < self.max_files:
            raise ValueError(
                f"a queue of {self.queue} images cannot take the {self.max_files} files that one "
                "request may have: raise the queue or lower max_files"
            )
