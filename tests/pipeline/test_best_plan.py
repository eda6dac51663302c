"""What search hands to finetune says in which precision it was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from biotune.finetuning.compute import Compute
from pipeline.best_plan import read_plans, say_other_precision, write_best_plan
from pipeline.params import Params
from tests.pipeline.trainings import BLOCKS, Trainings, curve, whole_search


@pytest.fixture
def file(tmp_path: Path, default_params: Params) -> Path:
    def answer(task: object) -> object:
        return curve(0.9 if task.plan["stem"] is None else 0.5)  # type: ignore[attr-defined]

    result = whole_search(default_params.search, Trainings(answer))  # type: ignore[arg-type]
    write_best_plan(tmp_path / "best_plan.json", result, Compute("cpu", "bf16"))
    return tmp_path / "best_plan.json"


def test_what_is_written_is_read(file: Path) -> None:
    content = json.loads(file.read_text())
    assert content["precision"] == "bf16"
    plans = read_plans(file, BLOCKS)
    assert {role: name for role, (name, _) in plans.items()} == {
        "winner": content["name"],
        "best_recipe": content["best_recipe"]["name"],
    }
    assert dict(plans["winner"][1]) == content["blocks"]


def test_another_precision_is_said_with_what_pins_it(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_other_precision(file, Compute("cpu", "bf16"))
    assert capsys.readouterr().out == ""
    say_other_precision(file, Compute("cpu", "fp32"))
    said = capsys.readouterr().out
    assert "searched in bf16; this machine trains in fp32" in said
    assert "runtime.precision: bf16" in said
