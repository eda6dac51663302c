"""Plant faults in a copy of this tree, one at a time, and see whether the tests notice each.

    python -m tests.mutants [WORD ...]

plants those of ``tests/mutants.txt`` that have one of the words in the path of their file; without
a word, all. An entry of that list is a file, what is taken out of it (-), what is put there (+),
and the tests that must fail then (!). Entries are apart by an empty line; # begins a comment.

The exit code is 0 if every fault was noticed. It is 1 if one was not, and a message if the list has
rotted: a text that is not in its file just once, or a test that fails without any fault.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.tree import copy_tree

LIST = Path("tests", "mutants.txt")


@dataclass(frozen=True)
class Fault:
    """A fault to plant.

    Attributes:
        file: where, from the root of the tree.
        source: text that is there just once.
        replacement: what takes its place.
        tests: pytest's ids of the tests that must notice.
    """

    file: str
    source: str
    replacement: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        texts = (" ".join(text.split()) or "nothing" for text in (self.source, self.replacement))
        return f"{self.file}: {' → '.join(texts)}"

    @contextmanager
    def planted(self, tree: Path) -> Iterator[None]:
        """The fault is in the tree."""
        path = tree / self.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(self.source, self.replacement), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(whole, encoding="utf-8")


def read_faults(path: Path) -> list[Fault]:
    """All that a list holds; the module's docstring says how it is written."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    entries = [entry.splitlines() for entry in "\n".join(lines).split("\n\n") if entry.strip()]
    return [_fault([line for line in entry if line]) for entry in entries]


def _fault(entry: Sequence[str]) -> Fault:
    file, *lines = entry
    source, replacement, tests = (
        [line[2:] for line in lines if line.startswith(mark)] for mark in "-+!"
    )
    if not source or not tests or len(lines) != len([*source, *replacement, *tests]):
        sys.exit(f"{LIST}: {file}: expected lines that begin with -, + and !, got {lines}")
    return Fault(file, "\n".join(source), "\n".join(replacement), tuple(tests))


def check_found(tree: Path, faults: Sequence[Fault]) -> None:
    """Make sure that each fault can be planted in one place.

    Raises:
        SystemExit: naming all that can't.
    """
    for fault in faults:
        if not (tree / fault.file).is_file():
            sys.exit(f"{LIST}: there is no {fault.file}")
    counts = {
        fault: (tree / fault.file).read_text(encoding="utf-8").count(fault.source)
        for fault in faults
    }
    rotten = [f"  {fault} ({count} times)" for fault, count in counts.items() if count != 1]
    if rotten:
        sys.exit("\n".join([f"{LIST}: these texts are not in their files just once:", *rotten]))


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code and output, in a tree with ``scratch`` beside it for temporary files.

    Whatever this is ended by, no process of it is left.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        # A fault of the same length, planted in the same second, would run as what was compiled.
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tree.parent / "scratch"),
        "DVC_SITE_CACHE_DIR": str(tree.parent / "scratch"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    finally:
        with suppress(ProcessLookupError):  # the usual: all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, output


def plant_all(tree: Path, faults: Sequence[Fault]) -> list[Fault]:
    """Plant each fault in a copy of the tree, and say what became of it; those not noticed."""
    check_found(tree, faults)
    unnoticed = []
    with TemporaryDirectory(prefix="biotune-mutants-") as folder:
        copy = Path(folder, "tree")
        copy_tree(tree, copy)
        Path(folder, "scratch").mkdir()
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        code, output = run_tests(copy, tests)
        if code:
            sys.exit(f"{output}\nwithout any fault, the tests above do not pass")
        for fault in faults:
            with fault.planted(copy):
                code, output = run_tests(copy, fault.tests)
            if code not in (0, 1):
                sys.exit(f"{output}\n{fault}: its tests could not be run")
            print("noticed    " if code else "NOT NOTICED", fault, flush=True)
            if not code:
                unnoticed.append(fault)
    return unnoticed


def main(words: Sequence[str]) -> int:
    """Plant what the list in the current folder says; the exit code."""
    faults = [
        fault
        for fault in read_faults(LIST)
        if not words or any(word in fault.file for word in words)
    ]
    unnoticed = plant_all(Path.cwd(), faults)
    print(f"{len(faults)} faults planted, {len(unnoticed)} of them not noticed")
    return 1 if unnoticed else 0


def _end(number: int, _: object) -> None:
    """Leave by an exception, so that everything is cleaned up on the way."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    sys.exit(main(sys.argv[1:]))
