"""On a machine with only ``biotune[predict]``: no torch, no checkout, the labels of training."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from biotune.data.prepared import describe_file
from biotune.deployment.bundle import write_samples
from biotune.deployment.predictor import Predictor
from biotune.images import DigitsSource
from tests.exported import Exported
from tests.imports import ROOT

pytestmark = pytest.mark.slow

EARLIER_RUNTIMES = ("1.31", "1.30")
"""The two minor versions before the locked one, which must still load what is exported."""


@dataclass(frozen=True)
class Alone:
    """A virtual environment with the wheel, its extra ``predict``, and nothing else."""

    folder: Path

    def run(self, *command: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run one of its programs, away from the checkout."""
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            input=stdin,
            capture_output=True,
        )


def pip(python: Path | str, *words: str) -> None:
    command = [str(python), "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), ".")
    (wheel,) = folder.glob("biotune-*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    lock = ROOT / "requirements.lock"
    pip(folder / "venv/bin/python", "install", "-c", str(lock), f"{wheel}[predict]")
    return Alone(folder / "venv")


@pytest.fixture(scope="module")
def pngs(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test digits as PNG files of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("pngs")
    source = DigitsSource()
    for row in exported.prepared.indices("test")[:200].tolist():
        place = source.paths.index(exported.prepared.paths[row])
        Image.fromarray(source.load(place)).save(folder / f"{row:04d}.png")
    return folder


def test_there_is_no_torch_and_no_stage(alone: Alone) -> None:
    listed = alone.run("python", "-m", "pip", "list", "--format", "json").stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert {"biotune", "numpy", "pillow", "onnxruntime", "click"} <= names
    assert not names & {"torch", "torchvision", "timm", "onnx", "mlflow", "dvc", "scikit-learn"}
    said = alone.run("biotune", "--help").stdout.decode()
    assert "predict" in said
    assert "search" not in said


def test_digits_get_the_labels_of_the_model_in_training(
    alone: Alone, pngs: Path, exported: Exported
) -> None:
    from biotune.finetuning.training import ImageSubset, predict_probabilities

    (pngs / "broken.png").write_bytes(b"no image")
    done = alone.run(
        "biotune", "predict", str(exported.path), str(pngs), "--format", "csv", "--top-k", "2"
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"200 classified by CPUExecutionProvider, 1 could not be used" in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    columns = ["path", "label", "probability", "label_2", "probability_2", "error"]
    assert list(rows[0]) == columns
    assert rows.pop()["error"] == "the file is no image that can be read"
    prepared = exported.prepared
    subset = ImageSubset(prepared.images, prepared.labels, prepared.indices("test")[:200])
    expected = predict_probabilities(exported.backbone, subset)
    labels = [exported.card.classes[index] for index in expected.argmax(axis=1)]
    assert [row["label"] for row in rows] == labels
    assert len(set(labels)) > 3
    for row, probabilities in zip(rows, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(probabilities.max(), abs=1e-4)


def test_json_tables_and_standard_input(alone: Alone, pngs: Path, exported: Exported) -> None:
    model, image = str(exported.path), sorted(pngs.glob("0*.png"))[0]
    by_file = json.loads(
        alone.run("biotune", "predict", model, str(image), "--format", "json").stdout
    )
    by_pipe = json.loads(
        alone.run(
            "biotune", "predict", model, "-", "--format", "json", stdin=image.read_bytes()
        ).stdout
    )
    assert by_file[0]["path"] == str(image)
    assert by_pipe[0]["path"] == "-"
    assert len(by_file[0]["classes"]) == 3
    assert by_file[0]["classes"] == by_pipe[0]["classes"]
    assert by_file[0]["label"] == by_file[0]["classes"][0]["label"]
    table = alone.run("biotune", "predict", model, str(image)).stdout.decode()
    assert by_file[0]["label"] in table
    assert " %" in table


def test_errors_are_one_line_and_the_exit_code_says_so(
    alone: Alone, pngs: Path, exported: Exported, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    nothing_usable = alone.run("biotune", "predict", str(exported.path), str(tmp_path))
    assert nothing_usable.returncode == 1
    assert b"could not be used" in nothing_usable.stderr
    no_model = alone.run("biotune", "predict", "absent.onnx", str(pngs))
    assert no_model.returncode == 1
    assert b"there is no model absent.onnx" in no_model.stderr
    assert b"Traceback" not in no_model.stderr + nothing_usable.stderr


def test_a_bundle_is_verified_there(alone: Alone, exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(exported.path.read_bytes())
    samples = [DigitsSource().load(index) for index in range(5)]
    answers = Predictor(exported.path, device="cpu").probabilities(samples)
    write_samples(tmp_path / "samples.npz", samples, {"model.onnx": answers})
    labels = json.dumps({"classes": list(exported.card.classes)})
    (tmp_path / "labels.json").write_text(labels, encoding="utf-8")
    files = {file.name: describe_file(file) for file in tmp_path.iterdir()}
    (tmp_path / "verification.json").write_text(json.dumps({"files": files}))
    done = alone.run("biotune", "verify", str(tmp_path / "model.onnx"))
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert b"5 of 5 labels as exported" in done.stdout


@pytest.mark.parametrize("version", EARLIER_RUNTIMES)
def test_earlier_runtimes_load_it_and_say_the_same(
    alone: Alone, exported: Exported, pngs: Path, tmp_path: Path, version: str
) -> None:
    python = alone.folder / "bin/python"
    pip(python, "install", "--no-deps", "--target", str(tmp_path), f"onnxruntime=={version}.*")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import onnxruntime; print(onnxruntime.__version__)\n"
        "from biotune.commands.group import main; main()"
    )
    words = ["predict", str(exported.path), str(pngs), "--format", "csv"]
    done = alone.run("python", "-c", script, *words)
    assert done.returncode == 0, done.stderr.decode()
    first, _, table = done.stdout.decode().partition("\n")
    assert first.startswith(f"{version}.")
    expected = alone.run("biotune", *words).stdout.decode()
    assert [row.split(",")[1] for row in table.splitlines()] == [
        row.split(",")[1] for row in expected.splitlines()
    ]
