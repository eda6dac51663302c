"""Runs come from the store where it knows them, and from the workers where it doesn't."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.training import LearningCurve
from pipeline.runs import TrainingRuns
from pipeline.store import EvaluationStore, shared_inputs
from tests.pipeline.trainings import curve, task


class Pool:
    """Trains by giving every task the same curve."""

    def __init__(self) -> None:
        self.trained: list[TrainingTask] = []

    def train(
        self, tasks: Iterable[tuple[TrainingTask, Path | None]]
    ) -> Iterator[tuple[TrainingTask, LearningCurve]]:
        for one, weights_file in tasks:
            assert weights_file is None
            self.trained.append(one)
            yield one, curve(0.5)


def test_only_what_the_store_does_not_know_is_trained_and_then_it_knows(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    pool = Pool()
    runs = TrainingRuns(store, pool)
    store.put(task(seed=1), curve(0.7))

    first = {run.task.seed: run for run in runs([task(seed=0), task(seed=1), task(seed=0)])}
    assert pool.trained == [task(seed=0)]
    assert (first[0].from_store, first[0].curve) == (False, curve(0.5))
    assert (first[1].from_store, first[1].curve) == (True, curve(0.7))

    again = list(runs([task(seed=0)]))
    assert [run.from_store for run in again] == [True]
    assert pool.trained == [task(seed=0)]


def test_a_curve_is_in_the_store_before_anybody_hears_of_it(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    for run in TrainingRuns(store, Pool())([task(seed=0), task(seed=1)]):
        assert store.get(run.task) == run.curve
