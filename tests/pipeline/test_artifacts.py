"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts import (
    FILES,
    files_of,
    read_json,
    write_csv,
    write_json,
    write_text,
    written_beside,
)
from pipeline.errors import PipelineError
from tests.imports import ROOT


def test_a_file_appears_whole_with_the_folders_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"name": "größe", "value": 0.1})
    assert json.loads(path.read_text()) == {"name": "größe", "value": 0.1}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with written_beside(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_none_is_an_empty_field_and_a_name_with_a_comma_is_quoted(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": None, "y": "a,b"}], ["x", "y"])
    assert (tmp_path / "a.csv").read_text() == 'x,y\n,"a,b"\n'


def test_a_missing_or_damaged_file_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the search stage first"):
        read_json(tmp_path / "a.json", made_by="search")
    (tmp_path / "a.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"a\.json is damaged .* run the search stage again"):
        read_json(tmp_path / "a.json", made_by="search")


def test_a_full_disk_names_the_output_and_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "plan.json", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"plan\.json cannot be written: the disk is full; free space"
    ):
        write_text(tmp_path / "plan.json", "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_paths_are_read_from_dvc_yaml_and_what_is_missing_is_named(tmp_path: Path) -> None:
    text = (ROOT / "dvc.yaml").read_text()
    file = tmp_path / "dvc.yaml"
    file.write_text(text.replace("vars:\n", "vars:\n  - my.yaml\n").replace("/seeds", "/all-seeds"))
    assert files_of(file) == replace(FILES, seeds=Path("artifacts/model/all-seeds"))
    file.write_text(text.replace("      model: artifacts/model/model\n", "      mine: a/b\n"))
    with pytest.raises(PipelineError, match=r"dvc\.yaml: `files:` .* where model are"):
        files_of(file)


def test_a_model_may_have_a_dot_in_its_name() -> None:
    files = replace(FILES, model=Path("artifacts/model/v1.2"))
    assert files.model_weights == Path("artifacts/model/v1.2.safetensors")
