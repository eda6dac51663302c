"""Training runs through the evaluation store: what is known is looked up, the rest is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.training import LearningCurve
from pipeline.store import EvaluationStore


class Workers(Protocol):
    """Where runs happen; see :class:`pipeline.executors.WorkerPool`."""

    def train(
        self, tasks: Iterable[tuple[TrainingTask, Path | None]]
    ) -> Iterator[tuple[TrainingTask, LearningCurve]]:
        """Run tasks side by side; yield each with its curve as soon as it is done."""
        ...


@dataclass(frozen=True)
class TrainingRun:
    """A task with its curve, and whether the store knew it before."""

    task: TrainingTask
    curve: LearningCurve
    from_store: bool


class TrainingRuns:
    """Answers training tasks from the store, or trains them on the workers and stores them."""

    def __init__(self, store: EvaluationStore, pool: Workers) -> None:
        self._store = store
        self._pool = pool

    def __call__(self, tasks: Iterable[TrainingTask]) -> Iterator[TrainingRun]:
        """Yield each distinct task once, as soon as its curve is known; known ones come first."""
        missing = []
        for task in dict.fromkeys(tasks):
            curve = self._store.get(task)
            if curve is None:
                missing.append(task)
            else:
                yield TrainingRun(task, curve, from_store=True)
        for task, curve in self._pool.train((task, None) for task in missing):
            self._store.put(task, curve)
            yield TrainingRun(task, curve, from_store=False)
