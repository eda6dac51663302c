"""``.ci/run`` by a ``make`` that only says what it was asked: every tier runs, and counts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.imports import ROOT


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of it, beside a PATH on which nothing can be installed."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "id", "ls"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    for name, body in (("make", 'echo "$1"; [ "$1" != "$FAIL" ]'), ("apt-get", "exit 100")):
        (tmp_path / "bin" / name).write_text(f"#!{shutil.which('sh')}\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    return tmp_path / ".ci" / "run"


@pytest.mark.parametrize(
    ("failing", "ran"),
    [
        ("", ["check", "test", "test-slow", "test-containers"]),
        ("check", ["check"]),
        ("test", ["check", "test", "test-slow", "test-containers"]),
        ("test-slow", ["check", "test", "test-slow", "test-containers"]),
        ("test-containers", ["check", "test", "test-slow", "test-containers"]),
    ],
)
def test_a_failure_of_any_tier_fails_it_after_all(
    script: Path, failing: str, ran: list[str]
) -> None:
    path = str(script.parents[1] / "bin")
    done = subprocess.run(
        ["bash", script], env={"PATH": path, "FAIL": failing}, capture_output=True, text=True
    )
    assert done.stdout.split() == ran, done.stderr
    assert (done.returncode == 0) == (failing == "")
