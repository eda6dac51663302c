"""The number formats that a model is exported in, and which of the smaller ones are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from biotune.data.prepared import PreparedImages
from biotune.deployment.bundle import MODEL_FILE
from biotune.deployment.predictor import Predictor
from biotune.deployment.quantize import convert_fp16, quantize_int8
from pipeline.params import ExportParams
from pipeline.proof.originals import Pixels, evenly

log = logging.getLogger(__name__)

BATCH_SIZES: Final = (1, 2, 32)
"""One image at a time as a service would ask, the smallest batch, and many as a batch job would."""

CALIBRATION_IMAGES: Final = 512
CALIBRATION_BATCH: Final = 16

_ROUNDING: Final = 1e-9
"""Accuracies are quotients: three of 300 less is 0.010000000000000009 less."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A number format that a model is exported in.

    Attributes:
        file: its name in the folder to deploy.
        batch_sizes: in which the proof asks it about the images.
        remark: what the card says of it, a sentence or nothing.
    """

    file: str
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class SmallerFormat(Format):
    """A format that is made of the fp32 model, and kept if it is accurate enough.

    Attributes:
        convert: writes it, from the fp32 model's file (first) to its own (second).
        max_drop: by how much validation accuracy may fall, in [0, 1]; None: it is not made.
    """

    convert: Callable[[Path, Path, PreparedImages], None]
    max_drop: Callable[[ExportParams], float | None]


def _to_int8(model: Path, out: Path, images: PreparedImages) -> None:
    quantize_int8(model, out, calibration_batches(images, CALIBRATION_IMAGES, CALIBRATION_BATCH))


def _to_fp16(model: Path, out: Path, images: PreparedImages) -> None:
    convert_fp16(model, out)


SMALLER: Final[Mapping[str, SmallerFormat]] = {
    "int8": SmallerFormat(
        file="model.int8.onnx",
        convert=_to_int8,
        max_drop=lambda export: export.int8_max_drop,
    ),
    "fp16": SmallerFormat(
        file="model.fp16.onnx",
        convert=_to_fp16,
        max_drop=lambda export: export.fp16_max_drop,
        batch_sizes=(32,),  # ONNX Runtime's CPU provider is slow in 16-bit floats
        remark="The accuracy of the fp16 form was measured on a CPU, though it is meant for GPUs.",
    ),
}
"""Name → format. A new one is an object here, a conversion in :mod:`biotune.deployment.quantize`,
and a key of ``export`` in the params, with its default in ``params.yaml``."""

FORMATS: Final[Mapping[str, Format]] = {"fp32": Format(file=MODEL_FILE), **SMALLER}
"""All of them, the one first that the others are made of."""


def add_smaller(
    export: ExportParams, folder: Path, images: PreparedImages
) -> dict[str, dict[str, Any]]:
    """Write those smaller formats of a folder's model that are accurate enough.

    Args:
        export: says how accurate that is.
        folder: has the fp32 model, and gets the others.
        images: prepared; int8 is calibrated on training images, all are measured on validation.

    Returns:
        By name: whether the format is ``kept``, the ``reason`` if it is not, and its measures.

    Raises:
        OSError, MemoryError: of this machine. Whatever else ONNX Runtime says, memory that it lacks
            itself too, counts as a network that cannot be converted, which is no error.
    """
    model = folder / MODEL_FILE
    expected = _validation_accuracy(model, images)
    outcomes = {}
    for name, form in SMALLER.items():
        out = folder / form.file
        outcomes[name] = _outcome(form, form.max_drop(export), model, out, images, expected)
        if not outcomes[name]["kept"]:
            out.unlink(missing_ok=True)
            print(f"{out.name} is not written: {outcomes[name]['reason']}")
    return outcomes


def _outcome(
    form: SmallerFormat,
    max_drop: float | None,
    model: Path,
    out: Path,
    images: PreparedImages,
    expected: float,
) -> dict[str, Any]:
    if max_drop is None:
        return {"kept": False, "reason": "params.yaml says null"}
    try:
        form.convert(model, out, images)
        accuracy = _validation_accuracy(out, images)
    except (OSError, MemoryError):  # of this machine, not of the network
        raise
    except Exception as error:  # whatever ONNX Runtime's tools say of a network they cannot convert
        log.warning("%s: %s", out.name, error, exc_info=True)
        # What it says may name this machine's folders, and goes into files that DVC compares.
        return {"kept": False, "reason": f"it cannot be converted ({type(error).__name__})"}
    return judge(accuracy, expected, max_drop)


def judge(accuracy: float, expected: float, max_drop: float) -> dict[str, Any]:
    """Whether a format is ``kept``, the ``reason`` if it is not, and its measures.

    Args:
        accuracy: on validation, in [0, 1].
        expected: the fp32 model's, likewise.
        max_drop: by how much the first may be below the second.
    """
    drop = expected - accuracy
    lost_too_much = drop > max_drop + _ROUNDING
    lost = f"validation accuracy falls by {100 * drop:.2f} points"
    return {
        "kept": not lost_too_much,
        "reason": f"{lost}, allowed are {100 * max_drop:.2f}" if lost_too_much else "",
        "validation_accuracy": accuracy,
        "validation_accuracy_drop": drop,
        "max_drop": max_drop,
    }


def _validation_accuracy(model: Path, images: PreparedImages) -> float:
    return accuracy_on_prepared(Predictor(model, device="cpu", threads=1), images, "validation")


def accuracy_on_prepared(predictor: Predictor, images: PreparedImages, split: str) -> float:
    """Share of a split's prepared images that a model classifies right, in [0, 1]."""
    rows = images.indices(split)
    right = 0
    for begin in range(0, len(rows), max(BATCH_SIZES)):
        batch = rows[begin : begin + max(BATCH_SIZES)]
        probabilities = predictor.probabilities(list(images.images[batch]))
        right += int((probabilities.argmax(axis=1) == images.labels[batch]).sum())
    return right / len(rows)


def calibration_batches(images: PreparedImages, most: int, size: int) -> Iterator[Pixels]:
    """Prepared training images in batches of one shape, evenly taken from all of them.

    Args:
        images: prepared.
        most: number of images.
        size: of a batch; one image at a time if there are fewer.
    """
    rows = images.indices("train")
    chosen = rows[evenly(len(rows), most)]
    size = size if len(chosen) >= size else 1
    for begin in range(0, len(chosen) - size + 1, size):
        yield np.ascontiguousarray(images.images[chosen[begin : begin + size]])
