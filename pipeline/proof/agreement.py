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
from biotune.deployment.predictor import Predictor
from biotune.deployment.verify import Agreement, compare, prepared_by_torch
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.training import ImageSubset, predict_probabilities
from biotune.images.sources import ImageSource
from pipeline.errors import PipelineError
from pipeline.trials.side_by_side import InOrder, single_threads

BATCH_SIZES: Final = (1, 2, 32)
"""One image at a time as a service would ask, the smallest batch, and many as a batch job would."""

FP16_BATCH_SIZES: Final = (32,)
"""ONNX Runtime's CPU provider is slow in 16-bit floats."""

SIZES: Final = {"prepared": None, "scaled_0.5": 0.5, "scaled_2": 2.0}
"""Other sizes at which test images are asked about: as prepared, and times their own."""

_SCALED_BYTES: Final = 4
"""A copy at twice the height and width is the largest of those, and one is made at a time."""

SIZED_IMAGES: Final = 256
"""Most images asked about at each other size."""

SAMPLE_IMAGES: Final = 10
_SAMPLE_PIXELS: Final = 512

_WINDOW: Final = max(BATCH_SIZES)

_MEMORY: Final = 1 << 30
"""Bytes of originals that may wait to be answered, and as many at all :data:`SIZES` together."""

Pixels = NDArray[np.uint8]
Rows = dict[tuple[str | int, ...], NDArray[np.float32]]
"""Model, with batch size, size or both → probabilities."""


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
    """What models say of the original test images.

    Attributes:
        probabilities: model → batch size → float32 [n, classes], of all images.
        digests: of each image, its name and label, whatever size it is prepared at.
        at_sizes: model → size → batch size → how it compares with torch there.
        samples: a few images to keep with a model, of as many classes as may be, none very large.
    """

    probabilities: Mapping[str, Mapping[int, NDArray[np.float32]]]
    digests: Sequence[str]
    at_sizes: Mapping[str, Mapping[str, Mapping[str, Agreement]]]
    samples: Sequence[Pixels]

    @property
    def test(self) -> str:
        """SHA-256 of all test images and labels, in whatever order they come."""
        return hashlib.sha256("".join(sorted(self.digests)).encode()).hexdigest()

    def in_order(self, right: Sequence[bool]) -> str:
        """A ``1`` for each image that was classified right, else a ``0``, in an order of their own.

        So that two models are compared image by image though the images came in another order.
        """
        return "".join("01"[one] for _, one in sorted(zip(self.digests, right, strict=True)))


def ask(
    predictors: Mapping[str, Predictor],
    backbone: Backbone,
    originals: Originals,
    images: PreparedImages,
    workers: int,
    on_image: Callable[[int], object],
) -> Answers:
    """Ask every model about every original test image, in batches of each of the sizes.

    And about at most :data:`SIZED_IMAGES` of them, evenly taken, at other sizes, where torch is
    given what the prepare stage would have made of them. Prepared images are all of one size, so
    that batches are as large as they say; originals are computed together only with others of their
    own size.

    Every original is decoded once. Images go through :data:`_WINDOW` at a time, each time a job of
    its own, so that the answers are the same however many jobs run side by side.

    Args:
        predictors: name → model, each computing on one thread.
        backbone: the network that they were exported from.
        originals: the test images.
        images: prepared.
        workers: jobs side by side.
        on_image: called with the number of images that were decoded and handed on, for a progress
            bar.
    """
    sized = set(_evenly(len(originals), SIZED_IMAGES))
    sampled = _sample_indices(originals)
    samples: dict[int, Pixels] = {}
    digests: list[str] = []
    waiting: list[tuple[int, Pixels]] = []
    with single_threads(workers) as threads:
        windows = InOrder[Rows](threads, 2 * workers, _MEMORY)
        groups = InOrder[Rows](threads, 2 * workers, _MEMORY)
        for window in _windows(len(originals), _WINDOW):
            loaded = [(index, originals.load(index)) for index in window]
            digests += [originals.digest(index, image) for index, image in loaded]
            samples |= {
                index: thumbnail(image, _SAMPLE_PIXELS)
                for index, image in loaded
                if index in sampled
            }
            decoded = [image for _, image in loaded]
            windows.put(_bytes(decoded), _at_all_batch_sizes, predictors, decoded)
            waiting += [(index, image) for index, image in loaded if index in sized]
            last = window[-1] == len(originals) - 1
            while len(waiting) >= _WINDOW or (last and waiting):
                group, waiting = waiting[:_WINDOW], waiting[_WINDOW:]
                size = _bytes([image for _, image in group]) * (1 + _SCALED_BYTES)
                groups.put(size, _at_all_sizes, predictors, backbone, originals.rows, images, group)
            on_image(len(window))
        found, compared = _joined(windows.results()), _joined(groups.results())
    return Answers(
        {name: {size: found[name, size] for size in batch_sizes(name)} for name in predictors},
        digests,
        {
            name: {
                size: {
                    f"batch_{batch}": compare(compared[name, size, batch], compared["torch", size])
                    for batch in batch_sizes(name)
                }
                for size in SIZES
            }
            for name in predictors
        },
        [samples[index] for index in sampled],
    )


def _bytes(images: Sequence[Pixels]) -> int:
    return sum(image.nbytes for image in images)


def _at_all_batch_sizes(predictors: Mapping[str, Predictor], images: Sequence[Pixels]) -> Rows:
    return {
        (name, size): _in_batches(predictor, images, size)
        for name, predictor in predictors.items()
        for size in batch_sizes(name)
    }


def _at_all_sizes(
    predictors: Mapping[str, Predictor],
    backbone: Backbone,
    rows: NDArray[np.int64],
    images: PreparedImages,
    group: Sequence[tuple[int, Pixels]],
) -> Rows:
    """What models and torch say of some originals at every one of :data:`SIZES`."""
    found: Rows = {}
    for size, scale in SIZES.items():
        if scale is None:
            asked = list(images.images[rows[[index for index, _ in group]]])
            prepared = np.stack(asked)
        else:
            asked = [_scaled(one, scale) for _, one in group]
            prepared = np.stack([prepared_by_torch(one, images.image_size) for one in asked])
        every = np.arange(len(group))
        subset = ImageSubset(prepared, np.zeros_like(every), every)
        found["torch", size] = predict_probabilities(backbone, subset)
        of_models = _at_all_batch_sizes(predictors, asked)
        found |= {(name, size, batch): of_models[name, batch] for name, batch in of_models}
    return found


def _joined(parts: Sequence[Rows]) -> Rows:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def batch_sizes(variant: str) -> tuple[int, ...]:
    """The sizes that a form of the model (``fp32``, ``int8``, ``fp16``) is asked in."""
    return FP16_BATCH_SIZES if variant == "fp16" else BATCH_SIZES


def _in_batches(predictor: Predictor, images: Sequence[Pixels], size: int) -> NDArray[np.float32]:
    parts = [images[begin : begin + size] for begin in range(0, len(images), size)]
    return np.concatenate([predictor.probabilities(part) for part in parts])


def _sample_indices(originals: Originals) -> list[int]:
    """The first of each class, then others."""
    _, first_of_each = np.unique(originals.labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(originals)), first_of_each)
    return [*sorted(first_of_each.tolist()), *rest.tolist()][:SAMPLE_IMAGES]


def _evenly(count: int, most: int) -> list[int]:
    indices: list[int] = np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()
    return indices


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
    chosen = rows[_evenly(len(rows), most)]
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
