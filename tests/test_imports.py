"""Imports point one way, so that each room can be used, tested and read without those above it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.imports import ROOT, imported_by, modules

ALLOWED = {
    "biotune.plan": set[str](),
    "biotune.files": set[str](),
    "biotune.evolution": {"biotune.plan"},
    "biotune.data": {"biotune.files"},
    "biotune.finetuning": {"biotune.plan", "biotune.files", "biotune.data"},
    "biotune.deployment": {"biotune.plan", "biotune.data", "biotune.finetuning"},
    "biotune.serving": {"biotune.data", "biotune.deployment"},
    "biotune.commands": {"biotune", "biotune.data", "biotune.deployment", "biotune.serving"},
    "pipeline": {
        "biotune.plan",
        "biotune.files",
        "biotune.evolution",
        "biotune.data",
        "biotune.finetuning",
        "biotune.deployment",
    },
    "stages": {"biotune", "biotune.commands", "pipeline"},
}
"""Room → the rooms that its modules may import, beside their own."""


def room(module: str) -> str:
    names = [name for name in ALLOWED if f"{module}.".startswith(f"{name}.")]
    return names[0] if names else module


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
        ("biotune.commands.group", {"torch", "numpy", "onnxruntime", "PIL"}),
        ("stages.cli", {"torch", "mlflow", "numpy", "pydantic", "dvc"}),
    ],
)
def test_a_module_loads_nothing_that_it_does_not_need(module: str, unwanted: set[str]) -> None:
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert module.partition(".")[0] in done.stdout.split()
    assert not unwanted & set(done.stdout.split())
