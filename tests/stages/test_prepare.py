"""``biotune prepare`` by hand: success, and what a person may do wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from biotune.data.prepared import PreparedImages
from stages.prepare import main
from tests.stages.conftest import Pipeline
from tests.tiny import write_tiny_params


def test_it_writes_the_arrays_and_prints_images_per_class_and_split(pipeline: Pipeline) -> None:
    result = pipeline.results["prepare"]
    assert result.exit_code == 0, result.output
    prepared = PreparedImages.open(pipeline.artifacts / "prepared")
    sizes = {split: len(prepared.indices(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 40, "validation": 40, "test": 80}
    assert "class" in result.output
    assert "80" in result.output


def test_an_image_folder_is_named_by_option(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(6):
            picture = Image.new("RGB", (20 + index, 30), (40 * index, 255 * (name == "cat"), 0))
            picture.save(tmp_path / "mine" / name / f"{index}.png")
    params = write_tiny_params(
        tmp_path / "my.yaml",
        prepare__source="image_folder",
        prepare__train_images=None,
        prepare__validation_images=None,
    )
    command = ["--params", params, "--images", tmp_path / "mine", "--out", tmp_path / "out"]
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert PreparedImages.open(tmp_path / "out").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prepare__train_images": 5000}, "5000"),
        ({"prepare__train_images": 3}, "class"),
        ({"prepare__source": "image_folder", "prepare__path": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_prepared_is_one_message_and_nothing_is_written(
    changes: dict[str, object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_params(tmp_path / "params.yaml", **changes)
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "artifacts" / "prepared").exists()
