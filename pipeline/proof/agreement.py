"""The proof: an exported model says of the original test images what the trained network does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from biotune.data.prepared import PreparedImages
from biotune.deployment.predictor import Predictor
from biotune.deployment.verify import Agreement, compare, prepared_by_torch
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.inference import Trained, predict_each
from biotune.finetuning.training import ImageSubset, predict_probabilities
from pipeline.errors import PipelineError
from pipeline.params import ExportParams
from pipeline.proof.export_formats import FORMATS
from pipeline.proof.originals import Originals, Pixels, evenly, scaled, thumbnail
from pipeline.trials.side_by_side import InOrder, single_threads

SIZES: Final = {"prepared": None, "scaled_0.5": 0.5, "scaled_2": 2.0}
"""Other sizes at which test images are asked about: as prepared, and times their own."""

_SCALED_BYTES: Final = 4
"""A copy at twice the height and width is the largest of those, and one is made at a time."""

SIZED_IMAGES: Final = 256
"""Most images asked about at each other size."""

SAMPLE_IMAGES: Final = 10
_SAMPLE_PIXELS: Final = 512

_WINDOW: Final = max(size for form in FORMATS.values() for size in form.batch_sizes)

_MEMORY: Final = 1 << 30
"""Bytes of originals that may wait to be answered, and as many at all :data:`SIZES` together."""

Rows = dict[tuple[str | int, ...], NDArray[np.float32]]
"""Model, with batch size, size or both → probabilities."""


class ExportMismatchError(PipelineError):
    """The exported model does not say what the network says; no model is written."""


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
        ordered = sorted(zip(self.digests, right, strict=True))
        return "".join("01"[is_right] for _, is_right in ordered)


def ask(
    predictors: Mapping[str, Predictor],
    backbone: Backbone,
    originals: Originals,
    images: PreparedImages,
    workers: int,
    on_image: Callable[[int], object],
) -> Answers:
    """Ask every model about every original test image, in batches of its format's sizes.

    And about at most :data:`SIZED_IMAGES` of them, evenly taken, at other sizes, where torch is
    given what the prepare stage would have made of them. Prepared images are all of one size, so
    that batches are as large as they say; originals are computed together only with others of their
    own size.

    Every original is decoded once. Images go through :data:`_WINDOW` at a time, each time a job of
    its own, so that the answers are the same however many jobs run side by side.

    Args:
        predictors: format → model, each computing on one thread.
        backbone: the network that they were exported from.
        originals: the test images.
        images: prepared.
        workers: jobs side by side.
        on_image: called with the number of images that were decoded and handed on, for a progress
            bar.
    """
    sized = set(evenly(len(originals), SIZED_IMAGES))
    sampled = originals.first_of_each_class(SAMPLE_IMAGES)
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
        answers, at_sizes = _joined(windows.results()), _joined(groups.results())
    batch_sizes = {name: FORMATS[name].batch_sizes for name in predictors}
    return Answers(
        probabilities={
            name: {batch: answers[name, batch] for batch in batches}
            for name, batches in batch_sizes.items()
        },
        digests=digests,
        at_sizes={
            name: {
                size: {
                    f"batch_{batch}": compare(at_sizes[name, size, batch], at_sizes["torch", size])
                    for batch in batches
                }
                for size in SIZES
            }
            for name, batches in batch_sizes.items()
        },
        samples=[samples[index] for index in sampled],
    )


def _bytes(images: Sequence[Pixels]) -> int:
    return sum(image.nbytes for image in images)


def _at_all_batch_sizes(predictors: Mapping[str, Predictor], images: Sequence[Pixels]) -> Rows:
    return {
        (name, size): _in_batches(predictor, images, size)
        for name, predictor in predictors.items()
        for size in FORMATS[name].batch_sizes
    }


def _at_all_sizes(
    predictors: Mapping[str, Predictor],
    backbone: Backbone,
    rows: NDArray[np.int64],
    images: PreparedImages,
    group: Sequence[tuple[int, Pixels]],
) -> Rows:
    """What models and torch say of some originals at every one of :data:`SIZES`."""
    answers: Rows = {}
    for size, scale in SIZES.items():
        if scale is None:
            asked = list(images.images[rows[[index for index, _ in group]]])
            prepared = np.stack(asked)
        else:
            asked = [scaled(image, scale) for _, image in group]
            prepared = np.stack([prepared_by_torch(image, images.image_size) for image in asked])
        every = np.arange(len(group))
        subset = ImageSubset(prepared, np.zeros_like(every), every)
        answers["torch", size] = predict_probabilities(backbone, subset)
        of_models = _at_all_batch_sizes(predictors, asked)
        answers |= {(name, size, batch): of_models[name, batch] for name, batch in of_models}
    return answers


def _joined(parts: Sequence[Rows]) -> Rows:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _in_batches(predictor: Predictor, images: Sequence[Pixels], size: int) -> NDArray[np.float32]:
    parts = [images[begin : begin + size] for begin in range(0, len(images), size)]
    return np.concatenate([predictor.probabilities(part) for part in parts])


def _windows(count: int, size: int) -> Iterator[Sequence[int]]:
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))


def proof_figures(
    answers: Answers,
    exported: Trained,
    images: PreparedImages,
    originals: Originals,
    workers: int,
) -> dict[str, dict[str, Any]]:
    """How each model's answers compare with torch's, and how many of them are right.

    Args:
        answers: of the models.
        exported: the network that they were exported from.
        images: prepared.
        originals: the test images.
        workers: jobs side by side.

    Returns:
        Format → its figures, as ``verification.json`` has them.
    """
    test = ImageSubset(images.images, images.labels, originals.rows)
    with single_threads(workers) as threads:
        batches = [rows for (rows,) in predict_each([exported], test, Compute(), threads)]
    by_torch = np.concatenate(batches)
    figures: dict[str, dict[str, Any]] = {}
    for name, by_batch in answers.probabilities.items():
        predicted = by_batch[max(by_batch)].argmax(axis=1)
        figures[name] = {
            **{f"batch_{n}": asdict(compare(rows, by_torch)) for n, rows in by_batch.items()},
            "test_accuracy": float((predicted == originals.labels).mean()),
            **{
                size: {batch: asdict(agreement) for batch, agreement in by_batch_at.items()}
                for size, by_batch_at in answers.at_sizes[name].items()
            },
        }
    return figures


def by_format(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Format → its part of ``verification.json``, where fp32's figures are those at the top."""
    return {name: figures if name == "fp32" else figures[name] for name in FORMATS}


def worst(figures: Mapping[str, Any]) -> Agreement | None:
    """The least agreement at any batch size; None for a format that was not asked."""
    by_batch = [of for key, of in figures.items() if key.startswith("batch_")]
    if not by_batch:
        return None
    return Agreement(
        label_agreement=min(of["label_agreement"] for of in by_batch),
        largest_difference=max(of["largest_difference"] for of in by_batch),
    )


def check_agreement(figures: Mapping[str, Any], export: ExportParams, metrics: Path) -> None:
    """Make sure that the fp32 model says what torch says.

    Args:
        figures: its own.
        export: says how often it must.
        metrics: where the figures are written, for the message.

    Raises:
        ExportMismatchError: if it does not.
    """
    # The scaled images are too few to decide by; they say whether the graph resizes alike.
    both = [worst(figures), worst(figures["prepared"])]
    least = min(agreement.label_agreement for agreement in both if agreement is not None)
    required = export.min_label_agreement
    if least < required:
        raise ExportMismatchError(
            f"ONNX Runtime and torch agree on {100 * least:.2f} % of the test labels, "
            f"export.min_label_agreement asks for {100 * required:.2f} %; the figures are "
            f"in {metrics}, and no model was written"
        )
