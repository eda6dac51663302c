"""``dvc.yaml``: each stage depends on just what decides its results, and says each path once."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
import yaml
from dvc.repo import Repo
from dvc.stage import PipelineStage

from biotune.commands.group import main as library
from stages import cli
from tests.imports import ROOT, closure, modules

STAGES = ("prepare", "search", "finetune", "evaluate", "export")

# They check, record and show, and decide nothing of a result: params' values are tracked as such.
RECORDERS = {
    "pipeline.attempts",
    "pipeline.console",
    "pipeline.database",
    "pipeline.delivery",
    "pipeline.errors",
    "pipeline.home",
    "pipeline.lineage",
    "pipeline.mlflow_runs",
    "pipeline.params",
    "pipeline.plots",
    "pipeline.records",
    "pipeline.registry",
    "pipeline.sender",
    "pipeline.spool",
    "pipeline.tracking",
}


@pytest.fixture(scope="module")
def stages() -> dict[str, PipelineStage]:
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages if stage.name in STAGES}


def test_the_stages_are_those_of_the_command_group(stages: dict[str, PipelineStage]) -> None:
    others = {"backbones", "init", "sync", "ui", *library.commands}
    assert set(stages) == set(STAGES) == set(cli.main.commands) - others


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_modules_that_decide_its_results(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    known = modules()
    deciding = closure(f"pipeline.{name}", RECORDERS)
    expected = {known[module].relative_to(ROOT).as_posix() for module in deciding}
    listed = {dep.def_path for dep in stages[name].deps if dep.def_path.endswith(".py")}
    assert listed == expected, (
        f"missing in dvc.yaml: {sorted(expected - listed)}; too many: {sorted(listed - expected)}"
    )


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_section_and_the_locked_environment(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    assert "requirements.lock" in content["deps"]
    known = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert name in content["params"] or known[name] == {}


@pytest.mark.parametrize("name", STAGES)
def test_what_the_command_reads_and_writes_is_a_dep_or_an_out(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    stage = stages[name]
    tracked = {item.def_path for item in [*stage.deps, *stage.outs]}
    paths = re.findall(r"--[a-z-]+ (\S+)", stage.cmd)
    assert paths
    assert set(paths) <= tracked


@pytest.mark.parametrize("name", STAGES)
def test_by_hand_a_command_writes_where_dvc_lets_it_write(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    given = dict(re.findall(r"(--[a-z-]+) (\S+)", stages[name].cmd))
    options: dict[str, Any] = {
        option.opts[0]: option.default
        for option in cli.main.commands[name].params
        if isinstance(option, click.Option)
    }
    assert given.keys() == options.keys() - {"--params", "--images", "--dry-run"}
    for option, path in given.items():
        assert str(options[option]) == path


def test_no_output_is_a_function_of_the_time_or_the_machine(
    stages: dict[str, PipelineStage],
) -> None:
    outs = {out.def_path for stage in stages.values() for out in stage.outs}
    assert "artifacts/lineage.json" not in outs
    for stage in stages.values():
        inside = [o for o in outs for d in outs if o != d and o.startswith(f"{d}/")]
        assert not inside, f"{stage.name}: a file inside an output folder cannot be an output"
