"""The script that plants faults, on a tiny tree with two of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.imports import ROOT

FAULTS = """# two of them

doubling.py
-     return 2 * x
+     return 3 * x
! tests/test_doubling.py::test_two

doubling.py
- LIMIT = 3
+ LIMIT = 4
! tests/test_doubling.py
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "tests").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    (folder / "doubling.py").write_text("LIMIT = 3\n\n\ndef double(x):\n    return 2 * x\n")
    test = "from doubling import double\n\n\ndef test_two():\n    assert double(2) == 4\n"
    (folder / "tests" / "test_doubling.py").write_text(test)
    (folder / "tests" / "mutants.txt").write_text(FAULTS)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def start(tree: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.mutants", *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tree.parent / "scratch")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def content_of(tree: Path) -> dict[Path, bytes]:
    inside = (path for path in tree.rglob("*") if ".git" not in path.parts and path.is_file())
    return {path: path.read_bytes() for path in inside}


def test_it_says_what_was_noticed_and_what_was_not_and_leaves_all_as_it_was(tree: Path) -> None:
    before = content_of(tree)
    process = start(tree)
    said, errors = process.communicate()
    assert said.splitlines() == [
        "noticed     doubling.py: return 2 * x → return 3 * x",
        "NOT NOTICED doubling.py: LIMIT = 3 → LIMIT = 4",
        "2 faults planted, 1 of them not noticed",
    ], errors
    assert process.returncode == 1
    assert content_of(tree) == before
    assert not list((tree.parent / "scratch").iterdir())


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("doubling.py", "LIMIT = 3", "LIMIT = 5", "doubling.py: LIMIT = 3 → LIMIT = 4 (0 times)"),
        ("doubling.py", "LIMIT = 3", "LIMIT = 3\nLIMIT = 3", "LIMIT = 4 (2 times)"),
        ("tests/test_doubling.py", "== 4", "== 5", "without any fault, the tests above do not"),
        ("tests/mutants.txt", "::test_two", "::test_three", "its tests could not be run"),
        ("tests/mutants.txt", "- LIMIT", "LIMIT", "expected lines that begin with -, + and !"),
        ("tests/mutants.txt", "doubling.py\n- ", "gone.py\n- ", "there is no gone.py"),
    ],
)
def test_a_list_that_has_rotted_is_said(
    tree: Path, file: str, old: str, new: str, message: str
) -> None:
    path = tree / file
    path.write_text(path.read_text().replace(old, new))
    process = start(tree)
    said, errors = process.communicate()
    assert process.returncode == 1
    assert message in errors
    assert "noticed" not in said.lower()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_it_leaves_no_process_and_no_file(tree: Path, ending: int) -> None:
    running = tree.parent / "running"
    test = f"""
import os, time
from pathlib import Path

def test_two():
    Path({str(running)!r}).write_text(str(os.getpid()))
    time.sleep(60)
"""
    (tree / "tests" / "test_doubling.py").write_text(test)
    process = start(tree)
    deadline = time.monotonic() + 30
    while not (running.exists() and running.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(ending)
    process.communicate(timeout=30)
    assert process.returncode not in (0, 1)
    assert not list((tree.parent / "scratch").iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)
