"""What lies beside the models: names in the order of the outputs, and a checksum of every file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biotune.data.prepared import describe_file
from pipeline.proof.bundle import complete_bundle

CLASSES = ("zero", "10", "2", "Apple", "ant")  # in no order that sorting would leave


@dataclass
class Answering:
    """Stands in for a model."""

    path: Path
    classes: tuple[str, ...] = CLASSES

    def probabilities(self, images: list[np.ndarray]) -> np.ndarray:
        return np.full((len(images), len(CLASSES)), 0.2, np.float32)


def test_classes_stay_in_the_order_of_the_outputs_and_every_file_is_described(
    tmp_path: Path,
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    samples = [np.zeros((8, 8, 3), np.uint8)] * 2
    predictors = {"fp32": Answering(tmp_path / "model.onnx")}
    complete_bundle(tmp_path, predictors, samples, {"test_images": 2}, "# Card\n")  # type: ignore[arg-type]
    assert json.loads((tmp_path / "labels.json").read_text()) == {"classes": list(CLASSES)}
    triton = (tmp_path / "triton/biotune/labels.txt").read_text()
    assert triton.splitlines() == list(CLASSES)
    with np.load(tmp_path / "samples.npz") as kept:
        assert kept["answers of model.onnx"].shape == (2, len(CLASSES))
    verification = json.loads((tmp_path / "verification.json").read_text())
    names = ["card.md", "labels.json", "model.onnx", "samples.npz"]
    files = {name: describe_file(tmp_path / name) for name in names}
    assert verification == {"test_images": 2, "files": files}
