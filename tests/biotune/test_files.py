"""Scratch folders belong to a living process, whatever its number, and go with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from biotune import files
from biotune.files import put_file, put_folder, scratch_beside
from tests.imports import ROOT


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """One that is writing ``path`` until it is killed."""
    script = f"""
import sys
from pathlib import Path
from biotune.files import scratch_beside
with scratch_beside(Path({str(path)!r})) as scratch:
    (scratch / "half").mkdir()
    (scratch / "half" / "written").touch()
    print("here", flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdin=pipe, stdout=pipe
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
        process.kill()


def scratches(folder: Path) -> list[Path]:
    return list(folder.glob(".*.partial"))


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    others = [tmp_path / name for name in (".plan.json.old.partial", ".plan.json.12.partial")]
    for other in others:
        other.mkdir()
    with another_process(path) as process:
        (living,) = set(scratches(tmp_path)) - set(others)
        with scratch_beside(path):
            assert (living / "half" / "written").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with scratch_beside(path):
            assert not living.exists()
    assert set(tmp_path.iterdir()) == set(others), "and nothing else is touched, and nothing left"


def test_a_leftover_of_the_same_process_id_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container each stage is process 1, and so were those that were killed."""
    with another_process(tmp_path / "seeds") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        monkeypatch.setattr(os, "getpid", lambda: process.pid)
        with scratch_beside(tmp_path / "seeds", alone=True) as scratch:
            assert scratches(tmp_path) == [scratch]


def test_who_must_be_alone_is_told_that_another_is_writing_the_same(tmp_path: Path) -> None:
    path = tmp_path / "prepared"
    with (
        another_process(path),
        pytest.raises(BlockingIOError, match=r"another process is writing .*prepared"),
        scratch_beside(path, alone=True),
    ):
        pass
    with scratch_beside(path, alone=True), scratch_beside(path) as inner:
        assert inner.is_dir()
    assert not scratches(tmp_path)


def test_what_was_left_before_it_had_a_lock_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".a.{'0' * 32}.partial").mkdir()
    with scratch_beside(tmp_path / "a", alone=True) as scratch:
        assert scratches(tmp_path) == [scratch]


def test_where_there_are_no_locks_nothing_is_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_hold", lambda _: None)
    left = tmp_path / f".a.{'0' * 32}.partial"
    left.mkdir()
    (left / ".lock").touch()
    with scratch_beside(tmp_path / "a", alone=True):
        assert left.exists()


def test_a_file_and_a_folder_are_synchronised_before_and_their_names_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised: list[str] = []

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        there = "" if (tmp_path / "there").exists() else " before"
        synchronised.append(f"{path.relative_to(tmp_path)}{there}")

    monkeypatch.setattr(os, "fsync", note)
    (tmp_path / "fresh").touch()
    put_file(tmp_path / "fresh", tmp_path / "there")
    assert synchronised == ["fresh before", "."]
    (tmp_path / "there").unlink()
    synchronised.clear()
    (tmp_path / "fresh" / "in").mkdir(parents=True)
    (tmp_path / "fresh" / "in" / "file").touch()
    put_folder(tmp_path / "fresh", tmp_path / "there", tmp_path / "old")
    assert set(synchronised[:-1]) == {
        "fresh before",
        "fresh/in before",
        "fresh/in/file before",
    }
    assert synchronised[-1] == "."


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "before").touch()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    rename = Path.rename

    def stubborn(source: Path, target: Path) -> Path:
        if source == fresh:
            raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(OSError, match="no"):
        put_folder(fresh, tmp_path / "there", tmp_path / "old")
    assert (tmp_path / "there" / "before").exists()
