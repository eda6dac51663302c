"""The folder that is deployed: a model, its proof, and what is needed to check it anywhere.

Reading it needs numpy, Pillow and ONNX Runtime alone, as :mod:`biotune.deployment.predictor` does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from biotune.data.prepared import describe_file
from biotune.deployment.predictor import Predictor

MODEL_FILE: Final = "model.onnx"
LABELS_FILE: Final = "labels.json"
SAMPLES_FILE: Final = "samples.npz"
VERIFICATION_FILE: Final = "verification.json"
CARD_FILE: Final = "card.md"
TRITON_FOLDER: Final = "triton"

TOLERANCE: Final = {"fp32": 0.02, "fp16": 0.05}
"""Largest difference in probability from the machine that exported. Other processors round sums
differently; then a resized pixel can come out one level off, which alone was seen to move a
probability by 0.01."""

COARSE_TOLERANCE: Final = 0.1
"""The same of every coarser format: in int8 each such step may move an activation to the next of
255 levels."""


@dataclass(frozen=True)
class Check:
    """One check of an exported model.

    Attributes:
        name: what.
        passed: whether it is as it should be.
        found: what was seen, for people.
    """

    name: str
    passed: bool
    found: str


def write_samples(
    path: Path, images: Sequence[NDArray[np.uint8]], answers: dict[str, NDArray[np.float32]]
) -> None:
    """Keep a few images with each model's answers.

    Args:
        path: an ``.npz`` file to write.
        images: uint8 RGB, each [height, width, 3].
        answers: a model's file name → its probabilities, float32 [n, classes].
    """
    arrays: dict[str, Any] = {f"image_{index}": image for index, image in enumerate(images)}
    arrays |= {f"answers of {name}": rows for name, rows in answers.items()}
    np.savez_compressed(path, **arrays)


def check_bundle(model: Path, device: str = "auto") -> list[Check]:
    """Look whether a model is the very file that was exported, and says here what it said there.

    Args:
        model: an ``.onnx`` file; what it is held against lies beside it.
        device: see :class:`~biotune.deployment.predictor.Predictor`.

    Returns:
        Every check, passed or not; those of a damaged file end with its checksum.

    Raises:
        FileNotFoundError: if the model, or what it is held against, is not there.
        ValueError: if what it is held against is damaged, or was written for another model.
    """
    if not model.is_file():
        raise FileNotFoundError(f"there is no model {model}: `biotune export` writes one")
    written = _read(model.parent / VERIFICATION_FILE)
    if model.name not in written["files"]:
        raise ValueError(
            f"{model.parent / VERIFICATION_FILE} knows no {model.name}, only "
            f"{', '.join(written['files'])}: keep a model's name and the folder that it came in"
        )
    checks = [
        _check_file(model.parent / name, written["files"][name])
        for name in (model.name, LABELS_FILE, SAMPLES_FILE)
    ]
    if not all(check.passed for check in checks):
        return checks  # whatever else went wrong, this is why
    predictor = Predictor(model, device=device)
    classes = _read(model.parent / LABELS_FILE)["classes"]
    checks.append(
        Check(
            "metadata",
            list(predictor.classes) == classes,
            f"{len(classes)} classes, {predictor.metadata['backbone']} at "
            f"{predictor.image_size} px",
        )
    )
    return [*checks, _check_answers(predictor)]


def _check_file(file: Path, written: dict[str, Any]) -> Check:
    if not file.is_file():
        return Check(file.name, False, "it is missing")
    described = describe_file(file)
    bytes_here, sha256 = f"{described['bytes']:,} bytes", f"SHA-256 {described['sha256'][:12]}…"
    if described == written:
        return Check(file.name, True, f"{bytes_here}, {sha256}")
    return Check(
        file.name,
        False,
        f"it is not the file that was exported ({bytes_here}, {sha256}; expected "
        f"{written['bytes']:,}, {written['sha256'][:12]}…)",
    )


def _check_answers(predictor: Predictor) -> Check:
    file = predictor.path.parent / SAMPLES_FILE
    with np.load(file, allow_pickle=False) as samples:
        expected = samples[f"answers of {predictor.path.name}"]
        images = [samples[f"image_{index}"] for index in range(len(expected))]
    answers = predictor.probabilities(images)
    same = int((answers.argmax(axis=1) == expected.argmax(axis=1)).sum())
    difference = float(np.abs(answers - expected).max())
    precision = str(predictor.metadata.get("precision", "fp32"))
    tolerance = TOLERANCE.get(precision, COARSE_TOLERANCE)
    return Check(
        "answers",
        same == len(expected) and difference <= tolerance,
        f"{same} of {len(expected)} labels as exported; probabilities differ by {difference:.1e} "
        f"at most (allowed: {tolerance}), computed with {predictor.provider}",
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file}: a model is checked against what it was exported with; keep "
            "the folder together"
        )
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if file.name == VERIFICATION_FILE:
            for name in (LABELS_FILE, SAMPLES_FILE, *content["files"]):
                content["files"][name]["bytes"], content["files"][name]["sha256"]
        else:
            content["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): export the model again") from error
    return content
