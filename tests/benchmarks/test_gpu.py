"""The GPU check without a GPU: a fault anywhere is told, and stops nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.bits import same_bits
from benchmarks.gpu.running import Report, Section, as_markdown, run_sections
from benchmarks.gpu.setting import (
    FULL,
    TINY,
    WEIGHTS_PACKAGE,
    Findings,
    Network,
    Setting,
    in_turns,
)
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import FitResult
from tests.benchmarks import planted
from tests.imports import ROOT

SMALL = replace(TINY, networks=(Network("resnet18", "none", 32, 8),))
MISSING = ("mlflow", "dvc", "pydantic", "pytest_timeout", "torchmetrics", WEIGHTS_PACKAGE)
"""What a bare GPU machine does not have."""


def ran(
    folder: Path,
    sections: dict[str, Callable[[Setting], Findings]],
    seconds: float = 60,
    in_all: float = 600,
) -> dict[str, Report]:
    setting = Setting("cpu", SMALL, folder, limit=0)
    timed = {name: Section(function, seconds) for name, function in sections.items()}
    return dict(run_sections(timed, setting, in_all))


def test_a_planted_fault_gives_exit_code_1_and_the_other_sections_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {
        "first": planted.raises,
        "second": planted.finds_a_fault,
        "third": planted.dies,
        "fourth": planted.finds_nothing,
        "last": planted.good,
    }
    with_time = {name: Section(run, 60) for name, run in sections.items()}
    monkeypatch.setattr(command, "SECTIONS", with_time)
    file = tmp_path / "new" / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--json", str(file)]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 1, done.output
    reports = json.loads(file.read_text())["sections"]
    assert {name: report["status"] for name, report in reports.items()} == {
        **dict.fromkeys(sections, "failed"),
        "last": "passed",
    }
    assert reports["first"]["faults"] == ["RuntimeError: planted"]
    assert reports["second"]["faults"] == ["the first network: RuntimeError: planted, too"]
    assert [row["ms"] for row in reports["second"]["rows"]] == [2.5, 3.5]
    assert reports["third"]["faults"] == ["its process ended by itself, with 7"]
    assert reports["fourth"]["faults"] == ["it has found nothing"]
    assert reports["last"]["rows"] == [{"what": "a figure", "ms": 1.5}]
    assert done.stdout.count("\n## ") == len(sections)
    assert "**Fault:** RuntimeError: planted\n" in done.stdout
    assert "a library prints" not in done.stdout
    assert done.stdout.endswith("\nNOT every section passed.\n")


def test_without_a_fault_it_is_0_and_only_what_is_chosen_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"bits": Section(planted.good, 60), "memory": Section(planted.raises, 60)}
    monkeypatch.setattr(command, "SECTIONS", sections)
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--section", "bits", "--json", str(file)]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 0, done.output
    assert list(json.loads(file.read_text())["sections"]) == ["bits"]


def test_a_section_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    reports = ran(tmp_path, {"slow": planted.hangs, "next": planted.good}, seconds=0.5)
    assert reports["slow"].faults == ["it took longer than its 5 s"]
    assert reports["next"].status == "passed"
    left = (tmp_path / "asleep").read_text()
    status = Path("/proc", left, "status")  # a zombie, until somebody asks for it
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_of_the_librarys_tests_only_those_for_a_gpu_run_and_a_failure_is_a_fault(
    tmp_path: Path,
) -> None:
    report = ran(tmp_path, {"gpu tests": planted.tests_that_fail})["gpu tests"]
    outcomes = [(str(row["test"]).partition("::")[2], row["outcome"]) for row in report.rows]
    assert outcomes == [
        ("test_right", "passed"),
        ("test_wrong", "failed"),
        ("test_skipped", "skipped"),
    ]
    assert [row["remark"] for row in report.rows] == ["", "assert 1 == 2", "no such card"]
    assert report.notes[0] == "1 passed, 1 failed, 1 skipped."
    assert len(report.faults) == 1
    assert "test_wrong failed in call: assert 1 == 2" in report.faults[0]


def test_a_cache_that_is_not_exact_is_found_out(tmp_path: Path) -> None:
    report = ran(tmp_path, {"bits": planted.a_cache_that_is_not_exact})["bits"]
    assert [row["cached = uncached"] for row in report.rows] == [False, False]
    assert report.status == "failed"
    assert "cached = uncached is not so" in report.faults[0]


def test_runs_are_the_same_only_with_all_their_bits() -> None:
    curve = LearningCurve((1.0,), (0.5,), (0.2,), 3, "finished", 1.0)
    run = FitResult(curve, {"weight": torch.ones(2)})
    assert same_bits(run, replace(run, curve=replace(curve, seconds=2.0)))
    assert not same_bits(run, replace(run, curve=replace(curve, train_loss=(1.0 + 1e-15,))))
    assert not same_bits(
        run, replace(run, best_state={"weight": torch.ones(2).nextafter(0 * torch.ones(2))})
    )
    assert not same_bits(run, replace(run, best_state={}))
    assert not same_bits(replace(run, best_state=None), replace(run, best_state=None))


def test_variants_take_turns_in_an_order_that_rotates() -> None:
    called: list[str] = []
    variants = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    measured = in_turns(variants, "cpu", turns=3, steps=2)
    assert "".join(called) == "ab" + "aabb" + "bbaa" + "aabb"
    assert {name: len(times) for name, times in measured.items()} == {"a": 3, "b": 3}


def test_the_table_has_every_column_and_says_what_there_cannot_be() -> None:
    rows = [{"what": "a|b", "share": 0.25}, {"what": "c", "ms": None, "same": False}]
    lines = as_markdown("images", Report("failed", 2.0, rows, ["A note."], ["wrong"])).split("\n")
    assert lines == [
        "## images: failed, 2.0 s",
        "",
        "**Fault:** wrong",
        "",
        "| what | share | ms | same |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | 25.0% |  |  |",
        "| c |  | n/a | NO |",
        "",
        "A note.",
    ]


def test_weights_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, WEIGHTS_PACKAGE, None)
    resnet, lite0 = FULL.networks
    resnet.require_weights()
    with pytest.raises(ValueError, match=f"efficientnet_lite0 are not here: .* {WEIGHTS_PACKAGE}"):
        lite0.require_weights()


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:99", "there is no cuda:99; give --device cpu"),
        ("mps", "'mps' is not measured: cpu, cuda or cuda:1"),
        ("foo", "'foo' is no device: cpu, cuda or cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_said_before_anything_is_run(device: str, said: str) -> None:
    done = CliRunner().invoke(command.main, ["--device", device])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_what_is_left_of_the_time_in_all_ends_the_others(tmp_path: Path) -> None:
    sections = {"slow": planted.hangs, "late": planted.hangs}
    reports = ran(tmp_path, sections, in_all=0.05)  # of a GPU; a CPU may take longer
    assert reports["slow"].faults == ["it took longer than its 0 s"]
    assert [report.status for report in reports.values()] == ["failed", "failed"]


def test_it_loads_nothing_that_a_bare_machine_does_not_have() -> None:
    script = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING!r}))  # whoever imports one of them fails
import benchmarks.gpu.__main__, timm
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_of_it_runs_on_a_cpu_in_small(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    arguments = ["-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nEvery section passed.\n")
    reports = json.loads(file.read_text())["sections"]
    assert list(reports) == list(command.SECTIONS)
    assert all(report["rows"] for report in reports.values())
    assert done.stderr.count("passed after") == len(reports)
    assert list(tmp_path.glob("tmp*")) == []  # nothing of its own is left
