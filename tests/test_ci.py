"""``.ci/run`` by a ``make`` that only says what it was asked; ``.ci/install`` by such a pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


PIP = """
import os, sys
print("Collecting one==1.0", *sys.argv[1:])
sys.stdout.buffer.write("J\u00f6rg".encode("latin-1") + b"\\nERROR: no such package\\n")
sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a lock file and a pip that installs nothing, and says a byte that is no UTF-8."""
    folder = tmp_path_factory.mktemp("install")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (folder / "pip").mkdir()
    (folder / "pip" / "__main__.py").write_text(PIP, encoding="utf-8")
    (folder / "small.lock").write_text("# pinned\none==1.0\ntwo==2.0\n", encoding="utf-8")
    return folder


def install(environment: Path, *arguments: str, code: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment / "venv/bin/python", ROOT / ".ci" / "install", *arguments],
        cwd=environment,
        env={"PYTHONPATH": str(environment), "CODE": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_installing_says_how_many_packages_and_how_long_it_took(environment: Path) -> None:
    done = install(environment, "small.lock", ".", code=0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Installing the 2 packages of small.lock into ")
    assert "Installed small.lock in " in done.stdout
    said = (environment / "venv/small-install.log").read_text(errors="replace").splitlines()
    first, second = (line for line in said if line.startswith("Collecting"))
    assert "--requirement small.lock" in first
    assert "--no-deps" in second
    assert second.endswith("--editable .")


def test_installing_that_fails_says_what_pip_said_last_and_where_the_rest_is(
    environment: Path,
) -> None:
    done = install(environment, "small.lock", ".", code=3)
    assert done.returncode == 1
    assert "ERROR: no such package" in done.stderr
    assert "pip ended with 3; all that it said is in " in done.stderr
    assert "Installed" not in done.stdout


def test_a_lock_file_that_is_missing_is_one_line(environment: Path) -> None:
    done = install(environment, "nothing.lock", code=0)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "usage: .ci/install LOCK" in done.stderr
