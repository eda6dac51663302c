"""The examples work as they are, and stay short."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.imports import ROOT
from tests.tiny import NETWORK

EXAMPLES = ROOT / "examples"


def test_a_training_loop_of_ones_own_is_searched_for_its_best_plan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = runpy.run_path(str(EXAMPLES / "own_training_loop.py"))["search"]
    assert search.done
    assert len(search.history) == search.planned_evaluations
    assert 1 - search.best.fitness > 0.8
    assert f"are right with {search.best.plan}" in capsys.readouterr().out


def test_one_plan_is_trained(tmp_path: Path) -> None:
    main = runpy.run_path(str(EXAMPLES / "one_plan.py"))["main"]
    assert main(tmp_path / "prepared", NETWORK, "none") > 0.6  # ten classes, random weights


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_is_read_at_a_glance(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 30
