"""The ``biotune`` command group."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from biotune import __version__
from biotune.commands.group import main as library
from stages import cli
from tests.imports import ROOT


def test_it_lists_every_stage_with_what_it_does() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    for stage in ("prepare", "search", "finetune", "evaluate", "export"):
        assert f"\n  {stage} " in result.output


STAGES = sorted(set(cli.main.commands) - {"backbones", "init", "sync", "ui", *library.commands})


@pytest.mark.parametrize("stage", sorted(cli.main.commands))
def test_every_command_has_help_with_an_example(stage: str) -> None:
    result = CliRunner().invoke(cli.main, [stage, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"\n    biotune {stage}( model\.onnx.*)?\n", result.output)
    assert ("--params" in result.output) == (stage in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_as_a_module_as_dvc_runs_it(stage: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "Examples:" in done.stdout


def test_it_says_its_version() -> None:
    assert __version__ in CliRunner().invoke(cli.main, ["--version"]).output


def test_a_fault_in_the_code_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOTUNE_TRACEBACK", "1")
    result = CliRunner().invoke(cli.main, ["prepare", "--params", "nowhere.yaml"])
    assert type(result.exception).__name__ == "ParamsError"
