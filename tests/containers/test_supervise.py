"""``dvc repro`` in one container, as ``compose.yaml`` and a Kubernetes Job run it, is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from tests.containers.engine import Engine
from tests.imports import ROOT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

NAME = "biotune-test-supervise"
STAGE = """
import pathlib, signal, sys, time
try:
    pathlib.Path("started").touch()
    time.sleep(0 if pathlib.Path("ended").exists() else 120)
    pathlib.Path("out").touch()
except KeyboardInterrupt:
    pathlib.Path("ended").write_text("in order")
    sys.exit(130)
"""
"""It works for two minutes, and no time if it was stopped before."""


@pytest.fixture
def words(engine: Engine, tmp_path: Path) -> Iterator[list[str]]:
    """What `podman run` is told of a checkout with one stage, before the command."""
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text("stages: {slow: {cmd: python stage.py, outs: [out]}}\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm"], cwd=tmp_path, check=True)
    entry = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["pipeline"]
    yield [
        *("--name", NAME, "--user", "0:0", "--network", "none", "--volume", f"{tmp_path}:/work"),
        *("--entrypoint", json.dumps(entry["entrypoint"]), "biotune-pipeline"),
    ]
    engine.run("rm", "--force", "--ignore", NAME)


def _interrupt(engine: Engine, folder: Path, stop: Sequence[str], *words: str) -> int:
    """Stop a container whose stage is at work; its exit code."""
    engine.run("run", "--detach", *words)
    deadline = time.monotonic() + 90
    while not (folder / "started").exists():
        assert time.monotonic() < deadline, engine.run("logs", NAME).stderr
        time.sleep(0.2)
    engine.run(*stop, NAME)
    code = int(engine.run("wait", NAME).stdout)
    engine.run("rm", NAME)
    return code


def test_stopping_the_container_ends_the_stage_in_order_and_leaves_no_lock(
    engine: Engine, words: list[str], tmp_path: Path
) -> None:
    code = _interrupt(engine, tmp_path, ["stop", "--time", "60"], *words, "dvc", "repro")
    assert code == 255  # DVC's, for a stage that failed
    assert (tmp_path / "ended").read_text() == "in order"
    engine.run("run", "--rm", *words, "dvc", "repro")
    assert (tmp_path / "out").exists()


def test_ctrl_c_reaches_the_command_as_well(
    engine: Engine, words: list[str], tmp_path: Path
) -> None:
    kill = ["kill", "--signal", "INT"]
    assert _interrupt(engine, tmp_path, kill, *words, "python", "stage.py") == 130
    assert (tmp_path / "ended").read_text() == "in order"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_its_exit_code_is_the_commands(
    engine: Engine, words: list[str], script: str, code: int
) -> None:
    assert engine.run("run", *words, "sh", "-c", script, check=False).returncode == code


def test_a_command_that_is_not_there_is_named(engine: Engine, words: list[str]) -> None:
    done = engine.run("run", *words, "nonsense", check=False)
    assert done.returncode != 0
    assert "nonsense: No such file" in done.stderr
