"""Decoding and resizing on all cores, in order, with memory for a few images at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from joblib import cpu_count  # minds affinity and a container's CPU limit
from torch.utils.data import DataLoader, Dataset

from biotune.data.decoding import UnusableImageError
from biotune.data.transforms import resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from biotune.data.sources import ImageSource

WORTH_PROCESSES = 64
"""Below this many images a second process is not worth its start."""


@dataclass(frozen=True)
class ReadImage:
    """One image of the source, resized, or the reason why it cannot be used.

    Attributes:
        pixels: uint8 ``[S, S, 3]``, or None.
        digest: SHA-256 of the pixels; empty without.
        size: width and height of the original, in pixels; zeros without.
        unusable: the reason; empty for an image that can be used.
    """

    pixels: NDArray[np.uint8] | None = None
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    unusable: str = ""


def read_images(source: ImageSource, indices: Sequence[int], size: int) -> Iterator[ReadImage]:
    """Decode and resize images side by side.

    Args:
        source: where they are.
        indices: which, ``[M]``.
        size: height and width of the result, in pixels.

    Yields:
        One for each index, in this order.

    Raises:
        OSError: if a process that decodes was killed.
    """
    processes = int(cpu_count()) if len(indices) >= WORTH_PROCESSES else 0
    loader: DataLoader[ReadImage] = DataLoader(
        _Images(source, indices, size),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=processes,
        prefetch_factor=8 if processes else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by" not in str(error):
            raise
        raise OSError(
            f"a process that decodes images was killed ({error}); is the machine's memory short?"
        ) from error


class _Images(Dataset[ReadImage]):
    def __init__(self, source: ImageSource, indices: Sequence[int], size: int) -> None:
        self._source, self._indices, self._size = source, indices, size

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, row: int) -> ReadImage:
        try:
            original = self._source.load(int(self._indices[row]))
        except UnusableImageError as error:
            return ReadImage(unusable=str(error))
        # A copy, because torch warns of the read-only arrays that Pillow gives.
        batch = torch.from_numpy(original.copy())[None]
        pixels = resize(batch, self._size)[0].permute(1, 2, 0).to(torch.uint8).numpy()
        height, width, _ = original.shape
        digest = hashlib.sha256(pixels.tobytes()).digest()
        return ReadImage(pixels, digest, (width, height))


def _as_it_is(one: Any) -> Any:
    # DataLoader would make tensors of arrays, and send these through shared memory, of which
    # containers have little.
    return one
