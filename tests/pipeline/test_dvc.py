"""``dvc.yaml``: each stage depends on just what decides its results, and says each path once."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
import yaml
from dvc.repo import Repo
from dvc.stage import PipelineStage

from biotune.commands.group import LIBRARY, main
from tests.imports import PACKAGES, ROOT, closure, modules

STAGES = ("prepare", "search", "finetune", "evaluate", "export")

EXEMPT = (
    *("pipeline.tracking", "pipeline.containers"),
    *("pipeline.reporting.console", "pipeline.reporting.plots"),
)
"""Rooms and modules that record, show and hand over, and decide nothing of a result; rows do."""

_COMPUTE = {"runtime.device", "runtime.precision", "runtime.compile"}

DECIDING = {
    "prepare": {"prepare"},
    "search": {"model", "search", *_COMPUTE},
    "finetune": {"model", "finetune", *_COMPUTE},
    "evaluate": {"finetune.training_seeds", "runtime.device"},
    "export": {"prepare", "model", "search", "finetune", "export"},
}
"""Stage → the params that it reads and that decide its results; the card of export shows most."""


@pytest.fixture(scope="module")
def stages() -> dict[str, PipelineStage]:
    with Repo(str(ROOT)) as repo:
        return {s.name: s for s in repo.index.stages if isinstance(s, PipelineStage)}


def test_the_stages_are_those_of_the_command_group(stages: dict[str, PipelineStage]) -> None:
    others = {"backbones", "init", "sync", "ui", *LIBRARY}
    assert set(stages) == {"inputs", *STAGES} == set(main.modules) - others
    assert stages["inputs"].always_changed  # so that it needs no deps


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_rooms_that_decide_its_results(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    paths = modules()
    exempt = {module for module in paths if f"{module}.".startswith(tuple(f"{r}." for r in EXEMPT))}
    # What params may name is listed elsewhere: its values decide, and are tracked as such.
    deciding = closure(f"pipeline.{name}", {*exempt, "pipeline.params"}) | {"pipeline.params"}
    files = {paths[module].relative_to(ROOT).as_posix() for module in deciding}
    listed = {dep.def_path for dep in stages[name].deps if dep.def_path.startswith(PACKAGES)}
    missing = {file for file in files if not _covering(file, listed)}
    assert not missing, f"missing in dvc.yaml: {sorted(missing)}"
    needless = listed - {dep for file in files for dep in _covering(file, listed)}
    assert not needless, f"nothing of these is imported: {sorted(needless)}"


def _covering(file: str, listed: set[str]) -> set[str]:
    """Those of the listed files and folders that a file is, or is in."""
    return {dep for dep in listed if file == dep or file.startswith(f"{dep}/")}


def test_what_records_shows_or_serves_reruns_nothing(stages: dict[str, PipelineStage]) -> None:
    free = ["pipeline/tracking/sender", "pipeline/containers/mounts", "stages/search"]
    free += ["pipeline/reporting/console", "pipeline/reporting/plots"]
    free += ["biotune/serving/app", "biotune/commands/predict"]
    listed = {dep.def_path for stage in stages.values() for dep in stage.deps}
    for module in free:
        assert (ROOT / f"{module}.py").is_file()
        assert not _covering(f"{module}.py", listed), f"{module} reruns a stage"


def test_dvc_yaml_can_be_read_on_three_screens() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_section_and_the_locked_environment(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    assert "requirements.lock" in content["deps"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert name in content["params"] or params[name] == {}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_params_that_decide_its_results(name: str) -> None:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    assert set(content["params"]) == DECIDING[name]


@pytest.mark.parametrize("name", ["inputs", *STAGES])
def test_what_the_command_reads_and_writes_is_a_dep_or_an_out(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    stage = stages[name]
    tracked = {item.def_path for item in [*stage.deps, *stage.outs]}
    paths = re.findall(r"--[a-z-]+ (\S+)", stage.cmd)
    assert paths
    assert set(paths) <= tracked


@pytest.mark.parametrize("name", ["inputs", *STAGES])
def test_by_hand_a_command_writes_where_dvc_lets_it_write(
    name: str, stages: dict[str, PipelineStage]
) -> None:
    given = dict(re.findall(r"(--[a-z-]+) (\S+)", stages[name].cmd))
    options: dict[str, Any] = {
        option.opts[0]: option.default
        for option in main.get_command(click.Context(main), name).params
        if isinstance(option, click.Option)
    }
    assert given.keys() == options.keys() - {"--params", "--images", "--dry-run", "--lineage"}
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
