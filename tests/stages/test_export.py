"""``biotune export`` by hand: success, the gate, and use without torch."""

from __future__ import annotations

import hashlib
import html
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from click.testing import CliRunner

from biotune.commands.verify import main as verify
from biotune.deployment.predictor import Predictor
from biotune.images import DigitsSource
from stages.export import main
from tests.imports import ROOT
from tests.stages.conftest import BACKGROUND, Pipeline
from tests.tiny import PICTURES, write_tiny_params

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


BUNDLE = {
    *("model.onnx", "model.int8.onnx", "model.fp16.onnx", "labels.json", "samples.npz", "card.md"),
    *("verification.json", "triton/biotune/config.pbtxt", "triton/biotune/labels.txt"),
    "triton/biotune/1/model.onnx",
}


@pytest.fixture
def verification(pipeline: Pipeline) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (pipeline.artifacts / "deploy/verification.json").read_text()
    )
    return content


def names_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_the_model_agrees_with_torch_on_every_original_test_image(
    pipeline: Pipeline, verification: dict[str, Any]
) -> None:
    result = pipeline.results["export"]
    assert result.exit_code == 0, result.output
    assert verification["test_images"] == 80
    for size in (1, 2, 32):
        assert verification[f"batch_{size}"]["label_agreement"] >= 0.999
        assert verification[f"batch_{size}"]["largest_difference"] < 1e-3
        assert verification["int8"][f"batch_{size}"]["label_agreement"] > 0.5
    # Digits come as 8 x 8 pixels: the graph resizes as the prepare stage did.
    for size in ("prepared", "scaled_0.5", "scaled_2"):
        for batch in (1, 2, 32):
            assert verification[size][f"batch_{batch}"]["label_agreement"] == 1
            assert verification[size][f"batch_{batch}"]["largest_difference"] < 1e-4
            assert verification["int8"][size][f"batch_{batch}"]["label_agreement"] > 0.5
    metrics = json.loads((pipeline.artifacts / "evaluation/metrics.json").read_text())
    assert verification["test_accuracy"] == pytest.approx(metrics["accuracy"], abs=0.001)


def test_the_bundle_is_whole_and_its_figures_are_those_of_the_metrics(
    pipeline: Pipeline, verification: dict[str, Any]
) -> None:
    assert names_in(pipeline.artifacts / "deploy") == BUNDLE
    files = verification.pop("files")
    assert verification == json.loads((pipeline.artifacts / "export/metrics.json").read_text())
    assert set(files) == {name for name in BUNDLE if "/" not in name} - {"verification.json"}
    checked = CliRunner().invoke(verify, [str(pipeline.artifacts / "deploy/model.onnx")])
    assert checked.exit_code == 0, checked.output


def test_the_model_says_where_it_came_from(pipeline: Pipeline) -> None:
    session = onnxruntime.InferenceSession(pipeline.artifacts / "deploy/model.onnx")
    said = session.get_modelmeta().custom_metadata_map
    metrics = json.loads((pipeline.artifacts / "evaluation/metrics.json").read_text())
    assert json.loads(said["metrics"])["accuracy"] == metrics["accuracy"]
    assert json.loads(said["input"])["background"] == BACKGROUND
    hashes = json.loads(said["hashes"])
    dataset = json.loads((pipeline.artifacts / "prepared/dataset.json").read_text())
    assert hashes["data"] == dataset["fingerprint"]
    weights = (pipeline.artifacts / "model/model.safetensors").read_bytes()
    assert hashes["weights"] == hashlib.sha256(weights).hexdigest()
    lock = (ROOT / "requirements.lock").read_bytes()
    assert hashes["lock"] == hashlib.sha256(lock).hexdigest()
    assert len(hashes["params"]) == 64
    lineage = json.loads((pipeline.artifacts / "lineage.json").read_text())
    assert lineage["hashes"] == hashes
    assert lineage["packages"]["onnxruntime"] == onnxruntime.__version__


def test_the_card_says_what_a_person_must_know(pipeline: Pipeline) -> None:
    card = html.unescape((pipeline.artifacts / "deploy/card.md").read_text())
    for heading in ("Intended use", "Data", "Quality on 80 test", "How it was trained", "Limits"):
        assert f"\n## {heading}" in card
    metrics = json.loads((pipeline.artifacts / "evaluation/metrics.json").read_text())
    assert f"Accuracy {metrics['accuracy']:.4f}" in card
    plan = json.loads((pipeline.artifacts / "search/best_plan.json").read_text())["blocks"]
    for block, rate in plan.items():
        assert f"| <code>{block}</code> | {'frozen' if rate is None else f'{rate:g} x'} |" in card
    assert card.count("| <code>7</code> |") == 2  # its images, and its figures
    assert "None" not in card
    assert "nan" not in card


def test_everything_is_a_function_of_the_inputs(in_pipeline: Pipeline, tmp_path: Path) -> None:
    again = tmp_path / "again"
    words = ["--bundle", str(again), "--metrics", str(tmp_path / "metrics.json")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    first = in_pipeline.artifacts / "deploy"
    assert names_in(again) == names_in(first)
    for name in names_in(first):
        assert (again / name).read_bytes() == (first / name).read_bytes(), name


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
    import pipeline.proof.agreement as stage

    def shifted(*arguments: Any) -> Any:
        return ((rows[:, ::-1],) for (rows,) in real(*arguments))

    real = stage.predict_each
    monkeypatch.setattr(stage, "predict_each", shifted)
    metrics = tmp_path / "metrics.json"
    words = ["--bundle", str(tmp_path / "deploy"), "--metrics", str(metrics)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "export.min_label_agreement asks for 99.90 %" in result.output
    assert json.loads(metrics.read_text())["batch_1"]["label_agreement"] < 0.999
    assert list(tmp_path.iterdir()) == [metrics]


def test_a_smaller_format_that_is_not_kept_is_said_everywhere(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    changes = {"export__int8_max_drop": None, "export__fp16_max_drop": 1.0}
    params = write_tiny_params(tmp_path / "params.yaml", **PICTURES, **changes)
    bundle = tmp_path / "deploy"
    words = ["--params", str(params), "--bundle", str(bundle)]
    result = CliRunner().invoke(main, [*words, "--metrics", str(tmp_path / "metrics.json")])
    assert result.exit_code == 0, result.output
    reason = "params.yaml says null"
    assert f"model.int8.onnx is not written: {reason}" in result.output
    assert names_in(bundle) == BUNDLE - {"model.int8.onnx"}
    verification = json.loads((bundle / "verification.json").read_text())
    assert verification["int8"] == {"kept": False, "reason": reason}
    assert f"not written: {reason}" in (bundle / "card.md").read_text()


@pytest.mark.parametrize(
    ("option", "stage"),
    [
        ("--model", "finetune"),
        ("--evaluation", "evaluate"),
        ("--classes", "evaluate"),
        ("--search-metrics", "search"),
    ],
)
def test_a_missing_input_says_which_stage_to_run(
    in_pipeline: Pipeline, tmp_path: Path, option: str, stage: str
) -> None:
    result = CliRunner().invoke(main, [option, str(tmp_path / "no.safetensors")])
    assert result.exit_code == 1
    assert f"run the {stage} stage first" in result.output


def test_a_folder_that_holds_something_else_is_left_alone(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    result = CliRunner().invoke(main, ["--bundle", str(tmp_path / "mine")])
    assert result.exit_code == 1
    assert "holds something else" in result.output
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_mlflow_serves_the_champion(pipeline: Pipeline) -> None:
    """By MLflow's own server, as ``mlflow models serve`` starts it."""
    image = DigitsSource().load(0)
    predictor = Predictor(pipeline.artifacts / "deploy/model.onnx", device="cpu")
    expected = predictor.probabilities([image])[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:///{pipeline.folder / 'home' / 'mlflow.db'}"
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/biotune@champion"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # for uvicorn
        "MLFLOW_TRACKING_URI": store,
        "PYTHONWARNINGS": "default",
    }
    log = pipeline.folder / "models-serve.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while not _answers(f"{address}/ping"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        body = json.dumps({"inputs": {"image": image[np.newaxis].tolist()}}).encode()
        request = urllib.request.Request(  # noqa: S310
            f"{address}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            (probabilities,) = json.load(answer)["predictions"]["probabilities"]
        assert np.abs(np.array(probabilities) - expected).max() < 1e-5
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):  # noqa: S310
            return True
    except OSError:
        return False
