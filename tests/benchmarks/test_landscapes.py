"""A recorded landscape: what is recorded in which order, and a recorder that is killed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.landscapes.plans import Landscape, Run
from benchmarks.landscapes.record import main
from benchmarks.landscapes.recording import (
    RecordedRun,
    open_recording,
    parse_plan,
    plan_text,
    read_recording,
)
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.images import ImageFolderSource, prepare_images
from biotune.plan import FineTunePlan
from tests.tiny import BLOCKS, NETWORK, write_pictures

LITE0 = ("stem", *(f"blocks.{i}" for i in range(7)), "conv_head", "classifier")
LANDSCAPE = Landscape(LITE0, TrainingSettings(epochs=8, patience=8, batch_size=32, base_lr=0.001))
RUNS = 4


def curve(plan: FineTunePlan, sign: int = 1) -> LearningCurve:
    """The better, the faster blocks.4 and conv_head learn."""
    rates = [plan[block] or 0 for block in ("blocks.4", "conv_head")]
    score = 0.5 + sign * sum(rates) / 100
    return LearningCurve((1.0,), (score,), (1.0,), 1, "finished", 1.0)


def recorded_to_its_end(
    landscape: Landscape,
    side_by_side: int,
    curve: Callable[[FineTunePlan], LearningCurve] = curve,
) -> list[Run]:
    """All runs in the order in which so many workers end them, the last started first."""
    recorded: dict[TrainingTask, LearningCurve] = {}
    runs: list[Run] = []
    while batch := [r for r in landscape.runs(recorded)[0] if r.task not in recorded]:
        for run in reversed(batch[:side_by_side]):
            recorded[run.task] = curve(run.task.plan)
            runs.append(run)
    assert landscape.runs(recorded)[1] == 0
    return runs


def test_some_250_runs_of_all_kinds_each_once_whatever_the_number_of_workers() -> None:
    runs = recorded_to_its_end(LANDSCAPE, side_by_side=3)
    assert 230 <= len(runs) <= 270
    assert len({run.task for run in runs}) == len(runs)
    assert {run.task for run in recorded_to_its_end(LANDSCAPE, side_by_side=7)} == {
        run.task for run in runs
    }
    plans = {run.task.plan: run.kind.partition(":")[0] for run in runs}
    counts = Counter(plans.values())
    assert counts["uniform"] == counts["neighbour"] == 40
    assert counts["scan"] == 3 * len(LITE0)
    assert counts["recipe"] >= 20
    assert counts["combination"] >= 16
    seeds = Counter(r.task.plan for r in runs if r.task.division.resampled is None)
    assert 0.1 <= sum(n == 5 for n in seeds.values()) / len(plans) <= 0.13
    divisions = Counter(r.task.plan for r in runs if r.task.division.resampled is not None)
    assert set(divisions.values()) == {4}
    assert all(parse_plan(plan_text(plan)) == plan for plan in plans)
    assert all(0.1 <= m <= 10 for plan in plans for m in plan.values() if m is not None)


def test_half_of_a_recording_has_every_kind_and_repetitions() -> None:
    runs = recorded_to_its_end(LANDSCAPE, side_by_side=4)
    begun = runs[: len(runs) // 2]
    kinds = Counter(run.kind.partition(":")[0] for run in begun)
    assert {"uniform", "scan", "recipe", "combination", "neighbour"} <= kinds.keys()
    assert any(run.task.seed for run in begun)


def test_the_best_single_blocks_are_combined_and_the_best_plans_bred_from() -> None:
    runs = {
        sign: recorded_to_its_end(LANDSCAPE, 8, lambda plan, sign=sign: curve(plan, sign))
        for sign in (1, -1)
    }

    def trained(kind: str, sign: int) -> Counter[str]:
        plans = {run.task.plan for run in runs[sign] if run.kind == kind}
        return Counter(block for plan in plans for block in plan.trained_blocks)

    assert {"blocks.4", "conv_head"} == {b for b, _ in trained("combination", 1).most_common(2)}
    assert not {"blocks.4", "conv_head"} & trained("combination", -1).keys()
    assert trained("neighbour", 1)["blocks.4"] > 30 > trained("neighbour", -1)["blocks.4"]


def test_more_of_them_later_adds_to_what_is_recorded() -> None:
    runs = {run.task for run in recorded_to_its_end(LANDSCAPE, side_by_side=8)}
    more = replace(LANDSCAPE, uniform=60, waves=3)
    assert runs < {run.task for run in recorded_to_its_end(more, side_by_side=8)}


@pytest.mark.parametrize("name", ["digits32", "flowers64"])
def test_what_is_committed_is_recorded_to_its_end(name: str) -> None:
    recorded = read_recording(Path("benchmarks/landscapes") / f"{name}.csv")
    kinds = {row.run.task: row.run.kind for row in recorded}
    runs, later = LANDSCAPE.runs({row.run.task: row.curve for row in recorded})
    assert {run.task: run.kind for run in runs} == kinds
    assert later == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landscape")
    source = ImageFolderSource(write_pictures(folder / "pictures"), "white")
    out = folder / "prepared"
    prepare_images(source, out, image_size=32, train_images=40, validation_images=40, seed=0)
    return out


@pytest.fixture(scope="module")
def recording(prepared: Path) -> Path:
    file = prepared.parent / "whole.csv"
    record(prepared, file, RUNS, "--workers", "2")
    return file


def record(prepared: Path, file: Path, runs: int, *more: str) -> str:
    arguments = [
        *("--prepared", str(prepared), "--out", str(file), "--backbone", NETWORK),
        *("--weights", "none", "--epochs", "2", "--workers", "1", "--runs", str(runs), *more),
    ]
    done = CliRunner().invoke(main, arguments)
    return "" if done.exception is None else str(done.exception)


def results(file: Path) -> Mapping[TrainingTask, RecordedRun]:
    """What must be the same whenever it is recorded."""
    return {
        r.run.task: replace(r, curve=replace(r.curve, seconds=0.0)) for r in read_recording(file)
    }


def test_a_row_says_all_of_a_run(recording: Path) -> None:
    rows = read_recording(recording)
    assert len(rows) == RUNS
    for row in rows:
        assert tuple(row.run.task.plan) == BLOCKS
        assert len(row.curve.train_loss) == len(row.curve.validation_brier) == 2
        assert row.best_epoch == row.curve.best_epoch
        assert row.test_score is not None
        assert 0 < row.test_score < 1
        assert 0 < row.curve.seconds < 60
        assert row.made_by["precision"] == "fp32"
    assert len({row.test_score for row in rows}) > 1


def test_a_killed_recorder_drops_the_torn_row_and_goes_on_to_the_same_bits(
    prepared: Path, recording: Path, tmp_path: Path
) -> None:
    lines = recording.read_text().splitlines(keepends=True)
    torn = tmp_path / "torn.csv"
    torn.write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])
    assert len(read_recording(torn)) == 1
    assert record(prepared, torn, RUNS - 1) == ""
    assert torn.read_text().startswith("".join(lines[:2]))
    assert results(torn) == results(recording)


def test_another_recorder_or_network_is_refused_and_nothing_written(
    prepared: Path, recording: Path
) -> None:
    before = recording.read_bytes()
    assert "the precision fp32, not bf16" in record(prepared, recording, 1, "--precision", "bf16")
    with open_recording(recording, read_recording(recording)[0].made_by):
        assert "another recorder is writing" in record(prepared, recording, 1)
    assert recording.read_bytes() == before


def test_a_file_that_is_no_recording_is_left_alone(prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.csv"
    file.write_text("a,b\n1,2" + os.linesep)
    assert f"{file} is no recording" in record(prepared, file, 1)
    assert file.read_text().startswith("a,b\n1,2")


def test_when_the_time_is_over_no_run_is_started(prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "none.csv"
    assert record(prepared, file, 1, "--limit-seconds", "1e-9") == ""
    assert read_recording(file) == []
    assert file.read_text().startswith("plan,kind,seed,")
