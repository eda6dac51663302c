"""The hash of the code sees what runs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.trials.code_version import code_hash
from tests.imports import ROOT

FILES = {
    "__init__.py": '"""A package."""\n',
    "loop.py": "from toy_package.steps import step\n\n\n"
    'def run():\n    """Run."""\n    return step(2)\n',
    "steps.py": "def step(n):\n    # twice\n    return 2 * n\n",
    "unused.py": "WORD = 1\n",
}


@pytest.fixture
def hash_with(tmp_path: Path) -> Callable[..., str]:
    """The hash of a toy package's loop, with some of its files changed."""
    number = 0

    def made(**changes: str) -> str:
        nonlocal number
        number += 1
        package = tmp_path / str(number) / "toy_package"
        package.mkdir(parents=True)
        for name, text in (FILES | {f"{k}.py": v for k, v in changes.items()}).items():
            (package / name).write_text(text)
        script = (
            "from pipeline.trials.code_version import code_hash; "
            "print(code_hash('toy_package.loop'))"
        )
        return subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": f"{package.parent}:{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    return made


def test_comments_docstrings_and_layout_change_nothing(hash_with: Callable[..., str]) -> None:
    other = "from toy_package.steps import (\n    step,\n)\ndef run():\n    return step(2)  # x\n"
    assert hash_with() == hash_with(loop=other, steps=FILES["steps.py"].replace("twice", "double"))
    assert hash_with() == hash_with(unused="WORD = 2\n")


def test_an_edited_step_however_far_below_changes_it(hash_with: Callable[..., str]) -> None:
    assert hash_with() != hash_with(steps=FILES["steps.py"].replace("2 * n", "3 * n"))
    assert hash_with() != hash_with(loop=FILES["loop.py"].replace("step(2)", "step(3)"))


def test_what_trains_is_in_it_and_it_is_the_same_again() -> None:
    assert code_hash() == code_hash()
    assert code_hash() != code_hash("biotune.finetuning.losses")
