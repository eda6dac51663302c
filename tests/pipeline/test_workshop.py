"""What search and finetune open: above all, what is kept when a stage fails."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from biotune.finetuning.compute import Compute
from pipeline.params import Params
from pipeline.tracking.stage_run import tracking_uri
from pipeline.trials.jobs import Outcome
from pipeline.trials.pool import LostWorkerError
from pipeline.workshop import Workshop
from tests.pipeline.trainings import FakeWorkers, curve, task


def run_stage(
    monkeypatch: pytest.MonkeyPatch, params: Params, home: Path, outcomes: Sequence[Outcome]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow may have set
    monkeypatch.setattr(
        "pipeline.workshop.WorkerPool", lambda *_: FakeWorkers(lambda _: list(outcomes))
    )
    images: Any = SimpleNamespace(fingerprint="data")
    backbone: Any = None
    shop = Workshop(params, home, home, images, backbone, Compute(), workers=1)
    with shop.open("search") as (runs, _):
        runs.submit(task())
        runs.next_finished()


def stage_run(home: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(tracking_uri(home))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`biotune.stage` = 'search'")
    return client, run


def test_a_stage_that_lost_its_workers_is_tracked_with_its_attempts_and_the_reason(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [Outcome(task(), attempt=f"killed {number}") for number in range(3)]
    lost = Outcome(task(), error=LostWorkerError("a training run was lost 3 times"))
    with pytest.raises(LostWorkerError):
        run_stage(monkeypatch, default_params, tmp_path, [*attempts, lost])
    client, run = stage_run(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["biotune.reason"] == "a training run was lost 3 times"
    file = client.download_artifacts(run.info.run_id, "attempts.csv", str(tmp_path))
    with Path(file).open(newline="") as stream:
        reasons = [row["reason"] for row in csv.DictReader(stream)]
    assert reasons == ["killed 0", "killed 1", "killed 2"]
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        assert database.execute("SELECT count(*) FROM attempts").fetchone() == (3,)


def test_without_any_attempt_there_is_no_table(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(monkeypatch, default_params, tmp_path, [Outcome(task(), curve=curve(0.5))])
    client, run = stage_run(tmp_path)
    assert run.info.status == "FINISHED"
    assert client.list_artifacts(run.info.run_id) == []
