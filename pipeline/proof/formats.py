"""The exported model in smaller number formats, each kept only if it is accurate enough."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from biotune.data.prepared import PreparedImages
from biotune.deployment.bundle import MODEL_FILE, VARIANT_FILES
from biotune.deployment.predictor import Predictor
from biotune.deployment.quantize import convert_fp16, quantize_int8
from pipeline.params import Params
from pipeline.proof.agreement import accuracy_on_prepared, calibration_batches

log = logging.getLogger(__name__)

_ROUNDING: Final = 1e-9
"""Accuracies are quotients: three of 300 less is 0.010000000000000009 less."""

CALIBRATION_IMAGES: Final = 512
CALIBRATION_BATCH: Final = 16


def add_variants(params: Params, folder: Path, images: PreparedImages) -> dict[str, dict[str, Any]]:
    """Write the int8 and fp16 forms of a folder's model that are accurate enough.

    Args:
        params: ``export.int8_max_drop`` and ``export.fp16_max_drop``, in shares of 1, decide.
        folder: has the fp32 model, and gets the others.
        images: prepared; int8 is calibrated on training images, both are measured on validation.

    Returns:
        By name: whether the form is ``kept``, the ``reason`` if it is not, and what was measured.

    Raises:
        OSError, MemoryError: of this machine. Whatever else ONNX Runtime says, memory that it lacks
            itself too, counts as a network that cannot be converted, which is no error.
    """
    model = folder / MODEL_FILE
    expected = accuracy_on_prepared(Predictor(model, device="cpu", threads=1), images, "validation")
    batches = calibration_batches(images, CALIBRATION_IMAGES, CALIBRATION_BATCH)
    makers: dict[str, tuple[float | None, Callable[[Path], None]]] = {
        "int8": (params.export.int8_max_drop, lambda out: quantize_int8(model, out, batches)),
        "fp16": (params.export.fp16_max_drop, lambda out: convert_fp16(model, out)),
    }
    found = {}
    for name, (max_drop, make) in makers.items():
        out = folder / VARIANT_FILES[name]
        found[name] = _variant(out, images, expected, max_drop, make)
        if not found[name]["kept"]:
            out.unlink(missing_ok=True)
            print(f"{out.name} is not written: {found[name]['reason']}")
    return found


def _variant(
    out: Path,
    images: PreparedImages,
    expected: float,
    max_drop: float | None,
    make: Callable[[Path], None],
) -> dict[str, Any]:
    if max_drop is None:
        return {"kept": False, "reason": "params.yaml says null"}
    try:
        make(out)
        accuracy = accuracy_on_prepared(
            Predictor(out, device="cpu", threads=1), images, "validation"
        )
    except (OSError, MemoryError):  # of this machine, not of the network
        raise
    except Exception as error:  # whatever ONNX Runtime's tools say of a network they cannot convert
        log.warning("%s: %s", out.name, error, exc_info=True)
        # What it says may name this machine's folders, and goes into files that DVC compares.
        return {"kept": False, "reason": f"it cannot be converted ({type(error).__name__})"}
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
