"""MLflow's own file is made whole, whatever kills whoever makes it, and wherever the home is."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking import ui
from pipeline.tracking.database import make_database, own_database
from tests.imports import ROOT


def test_a_kill_while_it_is_made_leaves_none_and_the_next_makes_it(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from pipeline.tracking.database import make_database, own_database
make_database(own_database(Path({str(tmp_path)!r})))
"""
    for seconds in (0.0, 0.3):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        while not list(tmp_path.glob(".mlflow.db.*.partial/mlflow.db")):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        process.wait()
        assert not (tmp_path / "mlflow.db").exists()
    make_database(own_database(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["mlflow.db"]
    assert MlflowClient(own_database(tmp_path)).search_experiments()


@pytest.mark.parametrize("name", ["höme 100% #a", "100%25", "a?b=c"])
def test_it_is_in_the_home_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    (home / "mlflow.db").touch()  # empty, as a process that was killed at once has left it
    make_database(own_database(home))
    client = MlflowClient(own_database(home))
    client.create_experiment("made")
    with sqlite3.connect(home / "mlflow.db") as database:
        names = database.execute("SELECT name FROM experiments").fetchall()
    assert ("made",) in names


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite://", "sqlite:///:memory:"])
def test_other_stores_are_not_made(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_database(uri)
    assert not list(tmp_path.iterdir())


def test_the_ui_serves_a_database_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made: list[str] = []

    def make(uri: str) -> None:
        made.append(uri)

    def call(command: list[str]) -> int:
        assert made == [own_database(tmp_path)]
        assert made[0] in command
        return 0

    monkeypatch.setattr(ui, "make_database", make)
    monkeypatch.setattr(subprocess, "call", call)
    assert ui.serve(5000) == 0
