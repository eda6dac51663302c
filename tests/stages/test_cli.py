"""The ``biotune`` command group."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from biotune import __version__
from biotune.commands.command import Command
from biotune.commands.group import LIBRARY, command_group, main
from tests.imports import ROOT


def test_it_lists_every_stage_with_what_it_does() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for stage in ("inputs", "prepare", "search", "finetune", "evaluate", "export"):
        assert f"\n  {stage} " in result.output


CONTEXT = click.Context(main)
STAGES = sorted(set(main.modules) - {"backbones", "init", "sync", "ui", *LIBRARY})


@pytest.mark.parametrize("stage", sorted(main.modules))
def test_every_command_has_help_with_an_example(stage: str) -> None:
    result = CliRunner().invoke(main, [stage, "--help"])
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


def test_without_a_checkout_there_are_the_commands_of_the_library_alone(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()  # another package of that name, beside no dvc.yaml
    result = CliRunner().invoke(command_group(tmp_path), ["--help"])
    listed = result.output.partition("Commands:")[2].split("\n")
    assert [line.split()[0] for line in listed if line.strip()] == list(LIBRARY)


def test_an_unknown_command_is_said() -> None:
    result = CliRunner().invoke(main, ["finetoon"])
    assert result.exit_code == 2
    assert "No such command 'finetoon'" in result.output


def test_it_says_its_version() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


def test_a_fault_in_the_code_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOTUNE_TRACEBACK", "1")
    result = CliRunner().invoke(main, ["prepare", "--params", "nowhere.yaml"])
    assert type(result.exception).__name__ == "ParamsError"


RESUMED = {"search", "finetune", "sync"}


@pytest.mark.parametrize("name", sorted(set(main.modules) - {"ui", *LIBRARY}))
def test_only_what_goes_on_says_that_it_would(name: str) -> None:
    command = main.get_command(CONTEXT, name)
    assert isinstance(command, Command)
    assert ("go on from there" in command.after_a_signal) == (name in RESUMED)
    assert "run the same command again" in command.after_a_signal


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [("time.sleep(60)", 143, "Terminated."), ("import slow_to_import", -signal.SIGTERM, "")],
)
def test_a_termination_is_an_exception_but_while_something_is_imported(
    tmp_path: Path, work: str, code: int, said: str
) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time; print(1, flush=True); time.sleep(60)")
    script = f"""
import time
import click
from biotune.commands.command import Command

@click.command(cls=Command)
def main():
    if "sleep" in {work!r}:
        print(1, flush=True)
    {work}

main()
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.strip() == said
