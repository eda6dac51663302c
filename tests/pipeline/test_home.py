"""Where things are kept that outlive a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.home import biotune_home


@pytest.fixture(autouse=True)
def _no_named_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIOTUNE_HOME", raising=False)


def checkout(folder: Path) -> Path:
    (folder / ".dvc").mkdir(parents=True)
    return folder


def test_it_is_at_the_root_of_the_checkout_from_any_folder_of_it(tmp_path: Path) -> None:
    root = checkout(tmp_path / "project")
    (root / "deep" / "down").mkdir(parents=True)
    assert biotune_home(root) == biotune_home(root / "deep" / "down") == root / ".biotune"
    assert (root / ".biotune").is_dir()


def test_a_throw_away_copy_of_dvc_shares_the_main_checkouts(tmp_path: Path) -> None:
    root = checkout(tmp_path / "project")
    copy = checkout(root / ".dvc" / "tmp" / "exps" / "tmpab12")
    assert biotune_home(copy) == root / ".biotune"


def test_outside_a_checkout_it_is_in_the_current_folder(tmp_path: Path) -> None:
    assert biotune_home(tmp_path) == tmp_path / ".biotune"


def test_the_environment_names_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path / "elsewhere"))
    assert biotune_home(checkout(tmp_path / "project")) == tmp_path / "elsewhere"


def test_a_home_that_is_a_file_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name, said in (("file", "is a file"), ("file/inside", "cannot be used")):
        monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path / name))
        with pytest.raises(OSError, match=rf"{name} {said}.*set BIOTUNE_HOME to a folder"):
            biotune_home()


def test_a_home_that_cannot_be_written_is_said_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path))
    monkeypatch.setattr("pipeline.home.TemporaryFile", read_only)
    with pytest.raises(OSError, match=r"Read-only file system.*set BIOTUNE_HOME to a folder"):
        biotune_home()
