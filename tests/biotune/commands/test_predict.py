"""``biotune predict`` by hand; ``end_to_end/test_predict_alone.py`` has it without torch."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from biotune.commands.group import main
from biotune.deployment.predictor import Predictor
from biotune.images import DigitsSource
from tests.exported import Exported


@pytest.fixture(scope="module")
def pngs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty digits as PNG files of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("pngs")
    for index in range(20):
        Image.fromarray(DigitsSource().load(index)).save(folder / f"{index:02d}.png")
    return folder


def predict(*words: str | Path, stdin: bytes | None = None) -> Result:
    command = ["predict", *map(str, words), "--device", "cpu"]
    return CliRunner().invoke(main, command, input=stdin)


def test_a_folder_becomes_a_table_of_labels_and_of_what_could_not_be_used(
    exported: Exported, pngs: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    words = (pngs, tmp_path, "--format", "csv", "--top-k", "2")
    result = predict(exported.path, *words)
    assert result.exit_code == 0, result.output
    assert "20 classified by CPUExecutionProvider, 1 could not be used" in result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    (broken,) = (row for row in rows if row["error"])
    assert broken["error"] == "the file is no image that can be read"
    images = [DigitsSource().load(index) for index in range(20)]
    expected = Predictor(exported.path, device="cpu").probabilities(images)
    labelled = {Path(row["path"]).name: row for row in rows if not row["error"]}
    assert len(labelled) == 20
    for index, probabilities in enumerate(expected):
        row = labelled[f"{index:02d}.png"]
        first, second = (-probabilities).argsort()[:2]
        assert row["label"] == exported.card.classes[first]
        assert row["label_2"] == exported.card.classes[second]
        assert float(row["probability"]) == pytest.approx(probabilities[first], abs=1e-4)


def test_json_tables_and_standard_input_say_the_same(exported: Exported, pngs: Path) -> None:
    image = pngs / "03.png"
    (by_file,) = json.loads(predict(exported.path, image, "--format", "json").stdout)
    piped = predict(exported.path, "-", "--format", "json", stdin=image.read_bytes())
    (by_pipe,) = json.loads(piped.stdout)
    assert (by_file["path"], by_pipe["path"]) == (str(image), "-")
    assert len(by_file["classes"]) == 3
    assert by_file["classes"] == by_pipe["classes"]
    assert by_file["label"] == by_file["classes"][0]["label"]
    table = predict(exported.path, image).stdout
    assert by_file["label"] in table
    assert " %" in table


def test_nothing_usable_and_no_model_are_errors_of_one_line(
    exported: Exported, pngs: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    nothing_usable = predict(exported.path, tmp_path)
    assert nothing_usable.exit_code == 1
    assert "could not be used" in nothing_usable.stderr
    no_model = predict("absent.onnx", pngs)
    assert no_model.exit_code == 1
    assert "there is no model absent.onnx" in no_model.stderr
    assert "Traceback" not in no_model.stderr + nothing_usable.stderr
