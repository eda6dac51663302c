"""Runs that had no result and were tried again: in the store's table, and in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.artifacts import csv_text
from pipeline.tracking.stage_run import StageRun
from pipeline.trials.pool import Attempt
from pipeline.trials.store import EvaluationStore


class Attempts(list[Attempt]):
    """What :class:`~pipeline.trials.pool.WorkerPool` tells of."""

    def __init__(self, store: EvaluationStore) -> None:
        super().__init__()
        self._store = store

    def note(self, one: Attempt) -> None:
        """Keep one, in the store first."""
        self._store.add_attempt(one.task, one.reason)
        self.append(one)


@contextmanager
def tracked_attempts(store: EvaluationStore, tracked: StageRun) -> Iterator[Attempts]:
    """Attempts that are tracked as ``attempts.csv`` at the end, also of a stage that fails."""
    attempts = Attempts(store)
    try:
        yield attempts
    finally:
        if attempts:
            rows = [one.row() for one in attempts]
            tracked.text("attempts.csv", csv_text(rows, list(rows[0])))
