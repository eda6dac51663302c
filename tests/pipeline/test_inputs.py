"""The inputs stage: what DVC does not see by itself reruns what depends on it, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from dvc.repo import Repo

from biotune.commands.group import main
from biotune.images.sources import SOURCES, TORCHVISION_SETS
from pipeline.inputs import FILE_SOURCES
from stages.options import ContainedCommand
from tests.checkout import Clone, make_clone
from tests.tiny import write_pictures

IMAGES = "artifacts/inputs/images.csv"
WEIGHTS = "artifacts/inputs/weights.csv"
OF_THE_IMAGES = {"prepare": {IMAGES}, "export": {IMAGES}}
OF_THE_WEIGHTS = {name: {WEIGHTS} for name in ("search", "finetune", "export")}

TABLE = {"file": "labels.csv", "image_column": "i", "label_column": "l", "split_column": None}
PARAMS = {"prepare__source": "image_csv", "prepare__path": "mine", "prepare__table": TABLE}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The real dvc.yaml with every stage up to date, as DVC sees it; none has been run.

    The images' folder has a class behind a link and a link to nothing; table and weights are files
    outside of it.
    """
    folder = tmp_path_factory.mktemp("inputs")
    copy = make_clone(folder, {**PARAMS, "model__weights": "weights.pt"})
    write_pictures(folder / "mine", images=20)
    (folder / "mine" / "9").rename(folder / "elsewhere")
    (folder / "mine" / "9").symlink_to("../elsewhere")
    (folder / "mine" / "0" / "gone.png").symlink_to("nowhere")
    (folder / "labels.csv").write_text("i,l\n0/000.png,zero\n1/001.png,one\n")
    (folder / "weights.pt").write_bytes(b"some")
    copy.run("dvc", "repro", "inputs")
    with Repo(str(folder)) as repo:
        outs = [Path(out.fs_path) for stage in repo.index.stages for out in stage.outs]
    for out in outs:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            out.write_text(out.name)
    copy.run("dvc", "commit", "--force")
    assert would_run(copy) == {}
    return copy


def would_run(clone: Clone) -> dict[str, set[str]]:
    """After ``dvc repro inputs``: stage that is out of date → those of its deps that changed."""
    clone.run("dvc", "repro", "inputs")
    status = json.loads(clone.run("dvc", "status", "--json"))
    assert status.pop("inputs") == ["always changed"]
    return {
        stage: {path for entry in entries for path in entry["changed deps"]}
        for stage, entries in status.items()
    }


@contextmanager
def holding(file: Path, content: bytes | None) -> Iterator[None]:
    """A file that holds this for a while; None for no file."""
    before = file.read_bytes() if file.exists() else None
    _put(file, content)
    try:
        yield
    finally:
        _put(file, before)


def _put(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def test_nothing_that_is_as_it_was_reruns_a_stage(clone: Clone) -> None:
    for file in ("mine/0/000.png", "labels.csv", "weights.pt"):
        os.utime(clone.folder / file, (1, 1))
    with holding(clone.folder / "mine" / ".DS_Store", b"of a file manager"):
        assert would_run(clone) == {}


def test_a_label_in_a_table_outside_the_images_folder_reruns_prepare(clone: Clone) -> None:
    with holding(clone.folder / "labels.csv", b"i,l\n0/000.png,one\n1/001.png,zero\n"):
        assert would_run(clone) == OF_THE_IMAGES


def test_an_image_that_goes_from_a_linked_class_folder_reruns_prepare(clone: Clone) -> None:
    with holding(clone.folder / "elsewhere" / "009.png", None):
        assert would_run(clone) == OF_THE_IMAGES
    assert would_run(clone) == {}


def test_other_weights_under_the_same_name_rerun_the_search(clone: Clone) -> None:
    with holding(clone.folder / "weights.pt", b"other"):
        assert would_run(clone) == OF_THE_WEIGHTS


def test_a_link_to_nothing_is_an_image_that_prepare_leaves_out(clone: Clone) -> None:
    assert "\n0/gone.png,\n" in (clone.folder / IMAGES).read_text()
    link = clone.folder / "mine" / "0" / "gone.png"
    link.unlink()
    assert would_run(clone) == OF_THE_IMAGES
    link.symlink_to("nowhere")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with a class folder, as the current one."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    for name in ("cat/2.png", "cat/10.png", "dog/1.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(name)
    return tmp_path


def list_inputs(
    path: str = "mine", source: str = "image_folder", table: Any = None, weights: str = "imagenet"
) -> Result:
    prepare = {"source": source, "path": path, "table": table}
    Path("params.yaml").write_text(yaml.dump({"prepare": prepare, "model": {"weights": weights}}))
    return CliRunner().invoke(main, ["inputs"])


def listed(**given: Any) -> tuple[str, str]:
    """What is in both lists."""
    result = list_inputs(**given)
    assert result.exit_code == 0, result.output
    return Path(IMAGES).read_text(), Path(WEIGHTS).read_text()


def test_the_same_files_make_the_same_lists_wherever_they_lie(place: Path) -> None:
    first = listed()
    assert [row.partition(",")[0] for row in first[0].splitlines()] == [
        *("path", "cat/10.png", "cat/2.png", "dog/1.png")
    ]
    other = place / "other"
    for name in ("dog/1.png", "cat/2.png"):
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text(name)
        os.utime(other / name, (1, 1))
    (other / "cat" / "10.png").symlink_to(place / "mine" / "cat" / "10.png")
    (other / "cat" / "..around").symlink_to(other)
    assert listed(path=str(other)) == first


def test_a_file_that_has_not_changed_is_not_read_again(place: Path) -> None:
    before = listed()
    file = place / "mine" / "dog" / "1.png"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_text(file.read_text().upper())
    os.utime(file, ns=times)
    assert listed() == before
    os.utime(file, (1, 1))
    assert listed() != before


def test_a_folder_and_weights_that_are_not_there_are_left_to_the_stages(place: Path) -> None:
    table = {"file": "nowhere.csv"}
    lists = listed(path="nowhere", source="image_csv", table=table, weights="nowhere.pt")
    assert lists == ("path,md5\nprepare.table.file,\n", "path,md5\n")


def test_a_name_that_is_no_text_is_refused(place: Path) -> None:
    file = place / "mine" / "cat" / os.fsdecode(b"\xff.png")
    file.write_text("cat")
    assert f"Error: the file name {str(file)!r} is not valid UTF-8" in list_inputs().output


def test_sources_that_are_no_files_of_the_users_have_none_listed(place: Path) -> None:
    assert set(SOURCES) - set(FILE_SOURCES) == {"digits", *TORCHVISION_SETS}
    assert listed(source="stl10") == ("path,md5\n", "path,md5\n")


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC
def test_what_dvc_has_added_comes_back_and_its_changes_are_noted(place: Path) -> None:
    with Repo() as repo:
        repo.add(["mine"])
    before, noted = listed(), Path("mine.dvc").read_text()
    shutil.rmtree(place / "mine")
    assert listed() == before
    assert Path("mine.dvc").read_text() == noted
    (place / "mine" / "dog" / "2.png").write_text("another")
    assert listed() != before
    assert "nfiles: 4" in Path("mine.dvc").read_text()


def test_what_cannot_be_listed_is_said_in_a_line(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(main, ["inputs", "--params", "nowhere.yaml"])
    assert result.exit_code == 1
    assert "`biotune prepare --params nowhere.yaml --dry-run`" in result.output
    assert "KeyError('file')" in list_inputs(table={}).output
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert "Error: DVC: you are not inside of a DVC repository" in list_inputs().output


def test_it_runs_beside_dvc_even_if_stages_run_in_containers() -> None:
    assert not isinstance(main.get_command(click.Context(main), "inputs"), ContainedCommand)
