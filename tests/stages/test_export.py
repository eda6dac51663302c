"""``biotune export`` by hand: success, the gate, and use without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from stages.export import main
from tests.stages.conftest import Pipeline

pytestmark = pytest.mark.slow

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it is an error from here on
import csv, json
import numpy as np, onnxruntime

artifacts = sys.argv[1]
with open(f"{artifacts}/prepared/samples.csv", newline="") as file:
    splits = np.array([row["split"] for row in csv.DictReader(file)])
images = np.load(f"{artifacts}/prepared/images.npy", mmap_mode="r")[splits == "test"]
session = onnxruntime.InferenceSession(
    f"{artifacts}/deploy/model.onnx", providers=["CPUExecutionProvider"]
)
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
(probabilities,) = session.run(None, {"image": np.ascontiguousarray(images)})
print(json.dumps([classes[index] for index in probabilities.argmax(axis=1)]))
"""


def test_it_writes_a_model_that_agrees_with_torch_on_every_test_image(pipeline: Pipeline) -> None:
    result = pipeline.results["export"]
    assert result.exit_code == 0, result.output
    verification = json.loads((pipeline.artifacts / "deploy/verification.json").read_text())
    assert verification["test_images"] == 1717
    for size in (1, 32):
        assert verification[f"batch_{size}"]["label_agreement"] >= 0.999
        assert verification[f"batch_{size}"]["largest_difference"] < 1e-3
    # Digits come as 8 x 8 pixels: the graph resizes as the prepare stage did.
    assert verification["raw_8x8"]["label_agreement"] == 1
    assert verification["raw_8x8"]["largest_difference"] < 1e-4


def test_plain_onnxruntime_gives_the_labels_of_the_predictions_without_torch(
    pipeline: Pipeline,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(pipeline.artifacts)],
        capture_output=True,
        text=True,
        check=True,
    )
    table = pd.read_csv(pipeline.artifacts / "evaluation/predictions.csv", dtype=str)
    same = pd.Series(json.loads(done.stdout)) == table.predicted
    assert same.mean() >= 0.999


def test_the_labels_beside_it_are_in_the_order_of_its_outputs(pipeline: Pipeline) -> None:
    labels = json.loads((pipeline.artifacts / "deploy/labels.json").read_text())
    assert labels == {"classes": list("0123456789")}


def test_a_model_that_disagrees_is_not_written_and_the_figures_are(
    in_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.export as stage

    def shifted(*arguments: object) -> object:
        for probabilities in real(*arguments):  # type: ignore[arg-type]
            yield probabilities[:, ::-1]

    real = stage.onnx_probabilities
    monkeypatch.setattr(stage, "onnx_probabilities", shifted)
    onnx, verification = tmp_path / "model.onnx", tmp_path / "verification.json"
    result = CliRunner().invoke(main, ["--onnx", str(onnx), "--verification", str(verification)])
    assert result.exit_code == 1
    assert "export.min_label_agreement asks for 99.90 %" in result.output
    assert json.loads(verification.read_text())["batch_1"]["label_agreement"] < 0.999
    assert list(tmp_path.iterdir()) == [verification]


def test_a_missing_model_says_which_stage_to_run(in_pipeline: Pipeline, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--model", str(tmp_path / "no.safetensors")])
    assert result.exit_code == 1
    assert "run the finetune stage first" in result.output
