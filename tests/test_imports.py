"""Imports point one way, so that each room can be used, tested and read without those above it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.imports import ROOT, imported_by, modules

GROUND = {"biotune.plan", "biotune.files"}
LIBRARY = GROUND | {"biotune.evolution", "biotune.images", "biotune.data", "biotune.finetuning"}
ALLOWED: dict[str, set[str]] = {
    "biotune.plan": set(),
    "biotune.files": set(),
    "biotune.evolution": {"biotune.plan"},
    "biotune.data": {"biotune.files"},
    "biotune.images": {"biotune.files", "biotune.data"},
    "biotune.finetuning": {*GROUND, "biotune.data"},
    "biotune.deployment": {"biotune.plan", "biotune.data", "biotune.finetuning"},
    "biotune.serving": {"biotune.data", "biotune.deployment"},
    "biotune.commands": {"biotune", "biotune.data", "biotune.deployment", "biotune.serving"},
    "biotune.__main__": {"biotune.commands"},
    "pipeline.ground": LIBRARY,
    "pipeline.trials": {*LIBRARY, "pipeline.ground"},
    "pipeline.evolving": {*LIBRARY, "pipeline.ground", "pipeline.trials"},
    "pipeline.proof": {*LIBRARY, "biotune.deployment", "pipeline.ground", "pipeline.trials"},
    "pipeline.tracking": {*GROUND, "biotune.finetuning", "biotune.deployment", "pipeline.ground"},
    "pipeline.reporting": {*LIBRARY, "pipeline.ground", "pipeline.tracking"},
    "pipeline.containers": {*GROUND, "pipeline.ground"},
    "pipeline": {
        *LIBRARY,
        "biotune.deployment",
        *(f"pipeline.{room}" for room in ("ground", "trials", "evolving", "proof", "tracking")),
        "pipeline.reporting",
    },
    "stages": {
        *("biotune", "biotune.commands", "stages.options"),
        *("pipeline", "pipeline.ground", "pipeline.tracking"),
    },
    "stages.options": {"biotune.commands", "pipeline.containers", "pipeline.ground"},
}
"""Room → the rooms that its modules may import, beside their own. ``pipeline`` is what lies at its
root: the stages, and what they share."""

FILES_OF_THE_GROUND = {
    f"pipeline.{name}" for name in ("artifacts", "errors", "garbage", "home", "params")
}


def room(module: str) -> str:
    if module in FILES_OF_THE_GROUND:
        return "pipeline.ground"
    names = [name for name in ALLOWED if f"{module}.".startswith(f"{name}.")]
    return max(names, key=len) if names else module


def test_every_module_belongs_to_a_room_and_imports_only_rooms_below_it() -> None:
    checked = 0
    for name, path in modules().items():
        if name == "biotune":
            assert not imported_by(path), "the package itself must cost nothing to import"
            continue
        assert room(name) in ALLOWED, f"{name} is in no room that this test knows"
        allowed = ALLOWED[room(name)] | {room(name)}
        wrong = {other for other in imported_by(path) if room(other) not in allowed}
        assert not wrong, f"{name} imports {sorted(wrong)}"
        checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("biotune.plan", {"numpy", "torch", "mlflow"}),
        ("biotune.evolution", {"torch", "torchvision", "mlflow", "dvc", "sklearn", "scipy"}),
        ("biotune.data", {"torch", "mlflow", "dvc", "sklearn"}),
        ("biotune.finetuning.training", {"mlflow", "dvc", "click", "onnx"}),
        ("biotune.deployment.bundle", {"torch", "scipy", "mlflow", "onnx", "click"}),
        ("pipeline.params", {"torch", "mlflow", "dvc", "sklearn", "scipy"}),
        ("pipeline.inputs", {"torch", "mlflow", "numpy", "PIL", "pydantic"}),
        ("biotune.commands.group", {"torch", "mlflow", "numpy", "pydantic", "dvc", "onnxruntime"}),
        ("stages.search", {"torch", "mlflow", "numpy", "pydantic", "dvc"}),
    ],
)
def test_a_module_loads_nothing_that_it_does_not_need(module: str, unwanted: set[str]) -> None:
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert module.partition(".")[0] in done.stdout.split()
    assert not unwanted & set(done.stdout.split())
