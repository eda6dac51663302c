"""Training runs without training: curves that are a plain function of the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from biotune.evolution import BioTune
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan
from pipeline.evolving.confirmation import confirm, contenders
from pipeline.evolving.loop import (
    SearchResult,
    evolve,
    new_search,
    search_result,
)
from pipeline.params import SearchParams
from pipeline.trials.jobs import Job, Outcome
from pipeline.trials.runs import Runs, TrainingRun

BLOCKS = ("stem", "middle", "top", "head")


def curve(accuracy: float, trained_parameters: int = 10, seconds: float = 0.5) -> LearningCurve:
    """Two epochs, the second the better one."""
    return LearningCurve(
        train_loss=(1.0, 0.5),
        validation_score=(accuracy / 2, accuracy),
        validation_brier=(1.0, 1 - accuracy),
        trained_parameters=trained_parameters,
        outcome="finished",
        seconds=seconds,
    )


def task(plan: dict[str, float | None] | None = None, seed: int = 0) -> TrainingTask:
    """A task for the four blocks above."""
    chosen = plan or {"stem": None, "middle": 2.0, "top": None, "head": 1.0}
    return TrainingTask(FineTunePlan(chosen), seed, TrainingSettings(2, 1, 4, 0.001))


class Trainings:
    """Stands for store and workers: answers tasks by a function, and remembers them.

    Args:
        answer: a task's whole curve; thresholds are minded here.
        order: which of the waiting tasks is finished next, by their number; default the last,
            because no order is promised.
    """

    def __init__(
        self,
        answer: Callable[[TrainingTask], LearningCurve],
        order: Callable[[int], int] = lambda waiting: waiting - 1,
    ) -> None:
        self._answer, self._order = answer, order
        self._waiting: list[TrainingTask] = []
        self.asked: list[TrainingTask] = []

    def submit(self, task: TrainingTask) -> None:
        assert task not in self._waiting, "a task that is waited for is not asked for again"
        self._waiting.append(task)

    def next_finished(self) -> TrainingRun:
        task = self._waiting.pop(self._order(len(self._waiting)))
        asked_before = task in self.asked
        self.asked.append(task)
        curve = self._answer(task).raced(task.must_reach)
        return TrainingRun(task, curve, from_store=asked_before)


class FakeWorkers:
    """Stands for the pool of processes; the last job is the first to be done.

    Args:
        answer: what becomes of a job.
    """

    def __init__(self, answer: Callable[[Job], list[Outcome]]) -> None:
        self._answer = answer
        self._waiting: list[Job] = []
        self.done: list[Job] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def wait(self) -> list[Outcome]:
        self.done.append(self._waiting.pop())
        return self._answer(self.done[-1])


def whole_search(
    params: SearchParams,
    runs: Runs,
    blocks: tuple[str, ...] = BLOCKS,
    search: BioTune | None = None,
) -> SearchResult:
    """A search and its confirmation, as the search stage does them; a new search if none is
    given."""
    search = search or new_search(params, blocks)
    evaluated = list(evolve(search, params, runs))
    confirmed = list(confirm(contenders(search, params, blocks), params, runs))
    return search_result(evaluated, confirmed)
