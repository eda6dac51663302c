"""Every exported model a version, the champion only what is better; read back through MLflow."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from onnx import TensorProto, helper, numpy_helper

from pipeline import sync
from pipeline.params import Params
from pipeline.tracking.mlflow import MlflowStage
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.registry import Registered, compare_answers, write_mlflow_model
from pipeline.tracking.sender import drain
from pipeline.tracking.stage_run import tracked_stage, tracking_uri
from tests.imports import ROOT

DESCRIBED = {
    "metrics": {"accuracy": 0.5},
    "hashes": {"data": "d1", "params": "p1", "weights": "w1", "lock": "l1"},
}
HALF = Registered("digits", DESCRIBED, "test images", "10" * 50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier by brightness, with the input and output of every exported one."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "h", "w", 3])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])
    weights = numpy_helper.from_array(np.array([[0.0, 0.1]] * 3, np.float32), "weights")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(nodes, "brightness", [image], [out], [weights, axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder = tmp_path_factory.mktemp("registry")
    onnx.save(made, folder / "model.onnx")
    example = np.full((1, 2, 2, 3), 7, np.uint8)
    write_mlflow_model(folder / "model.onnx", folder / "mlflow", example)
    return folder / "mlflow"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    return MlflowClient(tracking_uri(tmp_path / "home"))


def export(params: Params, home: Path, model: Path, registered: Registered) -> None:
    with tracked_stage("export", params, "data", home) as tracked:
        tracked.model(model, registered)


def decisions(client: MlflowClient) -> dict[str, str]:
    versions = client.search_model_versions("name = 'digits'")
    return {str(one.version): one.tags["biotune.decision"] for one in versions}


def test_the_first_model_is_the_champion_and_says_where_it_came_from(
    client: MlflowClient, tmp_path: Path, default_params: Params, model: Path
) -> None:
    export(default_params, tmp_path / "home", model, HALF)
    version = client.get_model_version_by_alias("digits", "champion")
    assert (
        version.tags.items()
        >= {
            "biotune.data": "d1",
            "biotune.params": "p1",
            "biotune.weights": "w1",
            "biotune.lock": "l1",
            "biotune.test_accuracy": "0.5000",
        }.items()
    )
    assert "mlflow.source.git.commit" in version.tags
    assert version.run_id is not None
    assert client.get_run(version.run_id).data.tags["biotune.stage"] == "export"
    mlflow.set_tracking_uri(tracking_uri(tmp_path / "home"))
    loaded = mlflow.pyfunc.load_model("models:/digits@champion")
    assert [one.name for one in loaded.metadata.signature.inputs] == ["image"]
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, -1, -1, 3)
    images = np.stack([np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)])
    found = loaded.predict({"image": images})["probabilities"]
    assert found[0] == pytest.approx([0.5, 0.5])
    assert found[1][1] > 0.99
    folder = Path(mlflow.artifacts.download_artifacts("models:/digits@champion"))
    names = {one.name for one in folder.rglob("*") if one.is_file()}
    assert "model.onnx" in names
    assert not {one for one in names if one.endswith((".data", ".bin"))}, "one file"


def test_a_model_may_be_written_while_the_sender_still_imports_mlflow(
    tmp_path: Path, model: Path
) -> None:
    """As of a few images: they are verified in less time than MLflow takes to be imported."""
    script = f"""
import time
from pathlib import Path
import numpy as np
from pipeline.params import load_params
from pipeline.tracking.registry import write_mlflow_model
from pipeline.tracking.stage_run import tracked_stage
home = Path({str(tmp_path)!r})
with tracked_stage("export", load_params(Path("params.yaml")), "data", home):
    time.sleep(0.3)
    image = np.full((1, 2, 2, 3), 7, np.uint8)
    write_mlflow_model(Path({str(model.parent / "model.onnx")!r}), home / "model", image)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MLflow does not answer" not in done.stderr
    assert (tmp_path / "model" / "MLmodel").exists()


def test_the_champion_moves_only_for_what_is_better_on_the_same_images(
    client: MlflowClient, tmp_path: Path, default_params: Params, model: Path
) -> None:
    home = tmp_path / "home"
    better = "1" * 90 + "0" * 10
    steps = [
        (HALF, "champion: there was no other"),
        (HALF, "challenger: +0.00 points of test accuracy against version 1 "),
        (replace(HALF, right="11" + HALF.right[2:]), "challenger: +1.00 points"),
        (replace(HALF, right=better), "champion: +40.00 points of test accuracy against version 1"),
        (HALF, "challenger: -40.00 points of test accuracy against version 4"),
        (
            replace(HALF, test="others", right="1" * 100),
            "challenger: version 4 was tested on other",
        ),
    ]
    for registered, _ in steps:
        export(default_params, home, model, registered)
    found = decisions(client)
    assert len(found) == len(steps)
    for number, (_, decision) in enumerate(steps, start=1):
        assert found[str(number)].startswith(decision), found[str(number)]
    assert client.get_model_version_by_alias("digits", "champion").version == 4
    assert client.get_model_version_by_alias("digits", "challenger").version == 6


@pytest.mark.parametrize("cut_off_in", ["create_model_version", "set_registered_model_alias"])
def test_what_was_half_registered_is_completed_and_not_made_twice(
    client: MlflowClient,
    tmp_path: Path,
    default_params: Params,
    model: Path,
    cut_off_in: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("pipeline.tracking.stage_run.PATIENCE", {"server": 0.1})
    export(default_params, home, model, HALF)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = getattr(MlflowClient, cut_off_in)

    def cut_off(*arguments: object, **named: object) -> None:
        done(*arguments, **named)
        raise ConnectionError("the answer never came")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, cut_off_in, cut_off)
        with closing(Outbox(home)) as outbox:
            (stage,) = outbox.left_behind()
            take = MlflowStage(stage, tracking_uri(home), home).take
            with pytest.raises(ConnectionError):
                list(drain(stage, "mlflow.db of the home", take, lambda _: False))
    sync.run()
    assert len(decisions(client)) == 1
    assert str(client.get_model_version_by_alias("digits", "champion").version) == "1"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("gained", "lost", "better"),
    [(20, 0, True), (20, 5, True), (3, 0, False), (12, 10, False), (0, 0, False), (0, 20, False)],
)
def test_better_is_what_a_paired_bootstrap_is_sure_of(gained: int, lost: int, better: bool) -> None:
    """Of 1,000 images; those that both classify alike tell nothing, many as are wrong."""
    alike = "".join(np.random.default_rng(0).choice(["0", "1"], 1000 - gained - lost))
    new, old = "1" * gained + "0" * lost + alike, "0" * gained + "1" * lost + alike
    found, said = compare_answers(new, old, "version 1")
    assert found == better
    assert f"{(gained - lost) / 10:+.2f} points of test accuracy against version 1" in said


def test_model_names_that_mlflow_does_not_take_are_refused(default_params: Params) -> None:
    content = default_params.model_dump()
    for name in ("", "a/b", "a:b"):
        content["tracking"]["registered_model"] = name
        with pytest.raises(ValueError, match="without / and :"):
            Params.model_validate(content)
