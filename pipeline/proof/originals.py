"""The test images as they came, which the proof asks about."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from biotune.data.decoding import UnusableImageError
from biotune.data.prepared import PreparedImages
from biotune.images.sources import ImageSource
from pipeline.errors import PipelineError

Pixels = NDArray[np.uint8]


class MissingOriginalError(PipelineError):
    """A test image is no longer where it was when it was prepared."""


class Originals:
    """The test images as they came, decoded again from where they came from.

    Args:
        source: where the prepare stage read them.
        images: prepared.

    Raises:
        MissingOriginalError: if the source has not all of them any more.
    """

    def __init__(self, source: ImageSource, images: PreparedImages) -> None:
        places = {path: index for index, path in enumerate(source.paths)}
        self.rows = images.indices("test")
        self.labels = images.labels[self.rows]
        self._names = [(images.paths[row], images.classes[images.labels[row]]) for row in self.rows]
        self._source = source
        try:
            self._places = [places[path] for path, _ in self._names]
        except KeyError as error:
            raise MissingOriginalError(
                f"the test image {error} is not in {source.name} any more: put it back, or run the "
                "prepare stage again"
            ) from error

    def __len__(self) -> int:
        return len(self._places)

    def load(self, index: int) -> Pixels:
        """A test image, uint8 [height, width, 3].

        Raises:
            MissingOriginalError: if it cannot be read any more.
        """
        try:
            return self._source.load(self._places[index])
        except UnusableImageError as error:
            raise MissingOriginalError(
                f"the test image {self._names[index][0]} cannot be read any more ({error}): put "
                "it back, or run the prepare stage again"
            ) from error

    def digest(self, index: int, image: Pixels) -> str:
        """SHA-256 of an image's name, label and pixels."""
        described = f"{self._names[index]} {image.shape}".encode()
        return hashlib.sha256(described + image.tobytes()).hexdigest()

    def first_of_each_class(self, most: int) -> list[int]:
        """At most so many images: the first of each class, then others."""
        _, first = np.unique(self.labels, return_index=True)
        others = np.setdiff1d(np.arange(len(self)), first)
        return [*sorted(first.tolist()), *others.tolist()][:most]


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the indices below ``count``, evenly taken."""
    indices: list[int] = np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()
    return indices


def scaled(image: Pixels, scale: float) -> Pixels:
    """An image at so many times its height and width."""
    height, width, _ = image.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image if scale == 1 else np.array(Image.fromarray(image).resize(size))


def thumbnail(image: Pixels, longest: int) -> Pixels:
    """An image, made smaller where a side is longer than so many pixels."""
    return scaled(image, min(1.0, longest / max(image.shape[:2])))
