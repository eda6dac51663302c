"""Decoding and resizing on all cores, with memory for one image in each process."""

from __future__ import annotations

import hashlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from joblib import cpu_count  # minds affinity and a container's CPU limit
from torch.utils.data import DataLoader, Dataset

from biotune.data.decoding import UnusableImageError
from biotune.data.transforms import resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from biotune.images.sources import ImageSource

WORTH_PROCESSES = 64
"""Below this many images a second process is not worth its start."""

_AT_ONCE = 16
"""Images that a process reports of together: each message costs about a millisecond."""


@dataclass(frozen=True)
class ReadImage:
    """What is known of one image whose pixels were written, or why it cannot be used.

    Attributes:
        digest: SHA-256 of the resized pixels; empty without.
        size: width and height of the original, in pixels; zeros without.
        unusable: the reason; empty for an image that can be used.
    """

    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    unusable: str = ""


def read_image(source: ImageSource, index: int, size: int) -> tuple[bytes, ReadImage]:
    """Decode and resize one image.

    Args:
        source: where it is.
        index: which of the source's images.
        size: height and width of the result, in pixels.

    Returns:
        Its pixels, uint8 ``[size, size, 3]``, empty if it cannot be used; and what is known of it.
    """
    try:
        original = source.load(index)
    except UnusableImageError as error:
        return b"", ReadImage(unusable=str(error))
    # A copy, because torch warns of the read-only arrays that Pillow gives.
    batch = torch.from_numpy(original.copy())[None]
    resized = resize(batch, size)[0].permute(1, 2, 0).to(torch.uint8)
    pixels = resized.contiguous().numpy().tobytes()
    height, width, _ = original.shape
    return pixels, ReadImage(hashlib.sha256(pixels).digest(), (width, height))


def read_images(
    source: ImageSource, indices: Sequence[int], size: int, file: Path, offset: int
) -> Iterator[ReadImage]:
    """Decode and resize images side by side, and write each one's pixels to its place in a file.

    Each process writes by itself: pixels handed from process to process would cost as much as
    decoding does.

    Args:
        source: where they are.
        indices: which, ``[M]``.
        size: height and width of the result, in pixels.
        file: exists; image number i of ``indices`` is written as uint8 ``[size, size, 3]`` at byte
            ``offset + i * size * size * 3``. The place of an unusable one is left as it is.
        offset: bytes before the first image.

    Yields:
        One for each index, in this order.

    Raises:
        OSError: if the disk is full, or a process that decodes was killed.
    """
    processes = int(cpu_count()) if len(indices) >= WORTH_PROCESSES else 0
    loader: DataLoader[ReadImage] = DataLoader(
        _Images(source, indices, size, file, offset),
        batch_size=_AT_ONCE if processes else 1,
        collate_fn=_as_it_is,
        num_workers=processes,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    try:
        for together in loader:  # a list, made by _as_it_is
            yield from together
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by" not in str(error):
            raise
        raise OSError(
            f"a process that decodes images was killed ({error}); is the machine's memory short?"
        ) from error


class _Images(Dataset[ReadImage]):
    def __init__(
        self, source: ImageSource, indices: Sequence[int], size: int, file: Path, offset: int
    ) -> None:
        self._source, self._indices, self._size = source, indices, size
        self._file, self._offset = file, offset

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, row: int) -> ReadImage:
        pixels, read = read_image(self._source, int(self._indices[row]), self._size)
        if not read.unusable:
            # Not through a memory map, where a full disk would kill the process.
            with self._file.open("r+b") as stream:
                stream.seek(self._offset + row * len(pixels))
                stream.write(pixels)
        return read


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ignore SIGINT and SIGTERM, which reach the whole group: what is inherited shows a traceback.

    Not their default either: the main process must not take its own end for a lost worker's.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(together: list[ReadImage]) -> list[ReadImage]:
    return together
