"""The first process of a container: SIGTERM to it alone ends DVC and its stage in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.imports import ROOT

SUPERVISE = [sys.executable, "-m", "stages.supervise"]
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]
"""Process ids begin at 1 again, as in a container."""

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


def _namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=120
    )


def _start(folder: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """Start it, and wait until the stage is at work."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not (folder / "started").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.fixture
def long_stage(tmp_path: Path) -> Path:
    make_pipeline(tmp_path)
    return tmp_path


def make_pipeline(folder: Path) -> None:
    """A pipeline of one stage, which works for two minutes, and nothing the second time."""
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text("stages: {slow: {cmd: python stage.py, outs: [out]}}\n")
    done = _run(folder, "dvc", "init", "--no-scm")
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("contained", [False, True], ids=["here", "as the first process"])
def test_sigterm_ends_the_stage_in_order_and_leaves_no_lock(
    long_stage: Path, contained: bool
) -> None:
    if contained and not _namespaces():
        pytest.skip("no namespace of process ids may be made here (unshare --pid)")
    command = [*(NAMESPACE if contained else []), *SUPERVISE, "dvc", "repro"]
    process = _start(long_stage, command)
    first = process.pid
    if contained:
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        first = int(children[0])
    os.kill(first, signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 143, printed
    assert (long_stage / "ended").read_text() == "in order"
    again = _run(long_stage, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (long_stage / "out").exists()


def test_ctrl_c_reaches_the_command_as_well(tmp_path: Path) -> None:
    process = _start(tmp_path, [*SUPERVISE, sys.executable, "-c", STAGE])
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert (tmp_path / "ended").read_text() == "in order"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_its_exit_code_is_the_commands(tmp_path: Path, script: str, code: int) -> None:
    assert _run(tmp_path, *SUPERVISE, "sh", "-c", script).returncode == code


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, *SUPERVISE, "nonsense")
    assert done.returncode == 127
    assert "nonsense cannot be run" in done.stderr


def test_without_a_command_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = _run(tmp_path, *SUPERVISE)
    assert done.returncode == 1
    assert "COMMAND" in done.stderr
