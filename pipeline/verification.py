"""The proof: an exported model says of the original test images what the trained network does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from biotune.data.decoding import UnusableImageError
from biotune.data.prepared import PreparedImages
from biotune.data.sources import ImageSource
from biotune.deployment.predictor import Predictor
from biotune.deployment.verify import Agreement, compare, prepared_by_torch
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.training import ImageSubset, predict_probabilities
from pipeline.errors import PipelineError

BATCH_SIZES: Final = (1, 2, 32)
"""One image at a time as a service would ask, the smallest batch, and many as a batch job would."""

FP16_BATCH_SIZES: Final = (32,)
"""ONNX Runtime's CPU provider is slow in 16-bit floats."""

SCALES: Final = (0.5, 2.0)
"""Other sizes at which test images are asked about, relative to their own."""

SCALED_IMAGES: Final = 256
"""Most images asked about at each other size."""

SAMPLE_IMAGES: Final = 10
_SAMPLE_PIXELS: Final = 512

Pixels = NDArray[np.uint8]


class MissingOriginalError(PipelineError):
    """A test image is no longer where it was when it was prepared."""


class Originals:
    """The test images as they came, decoded again from where they came from.

    Args:
        source: where the prepare stage found them.
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
        """One of them, uint8 [height, width, 3].

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
        """Of its name, label and pixels."""
        described = f"{self._names[index]} {image.shape}".encode()
        return hashlib.sha256(described + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Answers:
    """What models say of all original test images.

    Attributes:
        probabilities: model → batch size → float32 [n, classes].
        digest: SHA-256 of the test images and their labels, whatever size they are prepared at.
    """

    probabilities: Mapping[str, Mapping[int, NDArray[np.float32]]]
    digest: str


def ask(
    predictors: Mapping[str, Predictor], originals: Originals, on_image: Callable[[int], object]
) -> Answers:
    """Ask every model about every original test image, in batches of each of the sizes.

    Args:
        predictors: name → model.
        originals: decoded once each.
        on_image: called with the number of images that were done, for a progress bar.
    """
    found: dict[str, dict[int, list[NDArray[np.float32]]]] = {
        name: {size: [] for size in batch_sizes(name)} for name in predictors
    }
    digests = []
    for window in _windows(len(originals), max(BATCH_SIZES)):
        loaded = [originals.load(index) for index in window]
        digests += [originals.digest(i, image) for i, image in zip(window, loaded, strict=True)]
        for name, predictor in predictors.items():
            for size in batch_sizes(name):
                found[name][size] += [
                    predictor.probabilities(loaded[begin : begin + size])
                    for begin in range(0, len(loaded), size)
                ]
        on_image(len(window))
    joined = {
        name: {size: np.concatenate(parts) for size, parts in by_size.items()}
        for name, by_size in found.items()
    }
    digest = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return Answers(joined, digest)


def batch_sizes(variant: str) -> tuple[int, ...]:
    """The sizes that a form of the model (``fp32``, ``int8``, ``fp16``) is asked in."""
    return FP16_BATCH_SIZES if variant == "fp16" else BATCH_SIZES


def agreement_at_scale(
    predictor: Predictor, backbone: Backbone, originals: Originals, scale: float
) -> Agreement:
    """How a model and torch compare on test images of another size.

    Torch is given what the prepare stage would have made of the scaled image.

    Args:
        predictor: the exported model.
        backbone: the network that it was exported from.
        originals: at most :data:`SCALED_IMAGES` of them are taken, evenly.
        scale: times the height and width.
    """
    chosen = np.unique(np.linspace(0, len(originals) - 1, SCALED_IMAGES).astype(int)).tolist()
    exported, prepared = [], []
    for index in chosen:
        scaled = _scaled(originals.load(index), scale)
        exported.append(predictor.probabilities([scaled]))
        prepared.append(prepared_by_torch(scaled, predictor.image_size))
    every = np.arange(len(chosen))
    subset = ImageSubset(np.stack(prepared), np.zeros_like(every), every)
    return compare(np.concatenate(exported), predict_probabilities(backbone, subset))


def sample_images(originals: Originals) -> list[Pixels]:
    """A few test images to keep with a model, of as many classes as may be, none very large."""
    _, first_of_each = np.unique(originals.labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(originals)), first_of_each)
    chosen = [*sorted(first_of_each.tolist()), *rest.tolist()][:SAMPLE_IMAGES]
    return [thumbnail(originals.load(index), _SAMPLE_PIXELS) for index in chosen]


def thumbnail(image: Pixels, longest: int) -> Pixels:
    """An image, made smaller where a side is longer than so many pixels."""
    return _scaled(image, min(1.0, longest / max(image.shape[:2])))


def accuracy_on_prepared(predictor: Predictor, images: PreparedImages, split: str) -> float:
    """Share of a split's prepared images that a model classifies right, in [0, 1]."""
    rows = images.indices(split)
    right = 0
    for window in _windows(len(rows), max(BATCH_SIZES)):
        chosen = rows[window]
        found = predictor.probabilities(list(images.images[chosen]))
        right += int((found.argmax(axis=1) == images.labels[chosen]).sum())
    return right / len(rows)


def calibration_batches(images: PreparedImages, most: int, size: int) -> Iterator[Pixels]:
    """Prepared training images in batches of one shape, evenly taken from all of them.

    Args:
        images: prepared.
        most: number of images.
        size: of a batch; one image at a time if there are fewer.
    """
    rows = images.indices("train")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    size = size if len(chosen) >= size else 1
    for begin in range(0, len(chosen) - size + 1, size):
        yield np.ascontiguousarray(images.images[chosen[begin : begin + size]])


def _scaled(image: Pixels, scale: float) -> Pixels:
    height, width, _ = image.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image if scale == 1 else np.array(Image.fromarray(image).resize(size))


def _windows(count: int, size: int) -> Iterator[Sequence[int]]:
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))
