"""Attempts are kept and tracked, above all when a stage fails because of them."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from biotune.finetuning.compute import Compute
from pipeline.attempts import tracked_attempts
from pipeline.params import Params
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.stage_run import tracked_stage
from pipeline.trials.pool import Attempt, LostWorkerError
from pipeline.trials.store import EvaluationStore, shared_inputs
from tests.pipeline.trainings import task


def records(home: Path) -> dict[str, Any]:
    """Kind and content of what a stage has tracked."""
    with closing(Outbox(home)) as outbox:
        rows = outbox.execute("SELECT kind, content FROM records")
    return {kind: json.loads(content) for kind, content in rows}


def test_a_stage_that_lost_its_workers_is_tracked_with_its_attempts_and_the_reason(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))

    def stage() -> None:
        with (
            tracked_stage("finetune", default_params, "data", tmp_path) as tracked,
            tracked_attempts(store, tracked) as attempts,
        ):
            for number in range(3):
                attempts.note(Attempt(task(), f"killed {number}"))
            raise LostWorkerError("a training run was lost 3 times")

    with pytest.raises(LostWorkerError):
        stage()
    store.close()
    kept = records(tmp_path)
    assert kept["tags"] == {"biotune.reason": "a training run was lost 3 times"}
    assert kept["end"]["status"] == "FAILED"
    (copy,) = (tmp_path / "outbox").glob(f"*/{kept['file']['file']}")
    with copy.open(newline="") as stream:
        assert [row["reason"] for row in csv.DictReader(stream)] == [
            "killed 0",
            "killed 1",
            "killed 2",
        ]
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        assert database.execute("SELECT count(*) FROM attempts").fetchone() == (3,)


def test_without_any_there_is_no_table(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    with (
        tracked_stage("search", default_params, "data", tmp_path) as tracked,
        tracked_attempts(store, tracked),
    ):
        pass
    store.close()
    assert records(tmp_path).keys() == {"start", "end"}
