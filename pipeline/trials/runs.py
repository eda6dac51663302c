"""Training runs through the evaluation store: what it holds is looked up, the rest is trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.trials.jobs import Job, Outcome, Workers

Key = TypeVar("Key")


@dataclass(frozen=True)
class TrainingRun:
    """A task with its curve, and whether the store knew it before."""

    task: TrainingTask
    curve: LearningCurve
    from_store: bool


@dataclass(frozen=True)
class Attempt:
    """A run that had no result, and was tried again or given up.

    Attributes:
        task: what was trained.
        reason: why there was none.
    """

    task: TrainingTask
    reason: str

    def row(self) -> dict[str, object]:
        """One row of ``attempts.csv``."""
        task = self.task
        return {
            "seed": task.seed,
            "fold": task.division.fold,
            "reason": self.reason,
            "plan": str(task.plan),
        }


class Runs(Protocol):
    """What answers training tasks, in any order; see :class:`TrainingRuns`."""

    def submit(self, task: TrainingTask) -> None:
        """Ask for a task that is not being waited for already."""
        ...

    def next_finished(self) -> TrainingRun:
        """Wait for any of the tasks that were asked for."""
        ...


class CurveStore(Protocol):
    """Remembers curves by task; see :class:`pipeline.trials.store.EvaluationStore`."""

    def get(self, task: TrainingTask) -> LearningCurve | None:
        """The curve of a task, as far as its thresholds let it go; None if that is not known."""
        ...

    def put(self, task: TrainingTask, curve: LearningCurve) -> None:
        """Keep a run that is over."""
        ...

    def add_attempt(self, task: TrainingTask, reason: str) -> None:
        """Note that a run had no result, and is tried again."""
        ...

    def key(self, task: TrainingTask) -> str:
        """What a task's curve is kept under; it also names the task elsewhere."""
        ...


class TrainingRuns:
    """Answers training tasks from the store, or has them trained by the workers.

    Whatever the workers hand back is in the store before anything else is done with it: no result
    is lost to an error that comes with it, or to a kill after it.

    Args:
        store: looked into and written.
        workers: train.

    Attributes:
        attempts: the runs that had no result and were tried again.
    """

    def __init__(self, store: CurveStore, workers: Workers) -> None:
        self._store, self._workers = store, workers
        self._ready: deque[TrainingRun] = deque()
        self.attempts: list[Attempt] = []

    def submit(self, task: TrainingTask) -> None:
        """Ask for a task that is not being waited for already."""
        curve = self._store.get(task)
        if curve is None:
            self._workers.submit(Job(task))
        else:
            self._ready.append(TrainingRun(task, curve, from_store=True))

    def next_finished(self) -> TrainingRun:
        """Wait for any of the tasks that were asked for.

        Raises:
            LostWorkerError: if a run's worker was lost too often.
            ValueError, OSError, FreezeProofError: as :meth:`Trainer.train` does.
        """
        while not self._ready:
            self._receive()
        return self._ready.popleft()

    def key(self, task: TrainingTask) -> str:
        """What a task's curve is kept under; it also names the task elsewhere."""
        return self._store.key(task)

    def train(self, jobs: Sequence[Job]) -> Iterator[TrainingRun]:
        """Train all of these, for their weights, whatever the store knows; each when it is done.

        Raises:
            LostWorkerError, ValueError, OSError, FreezeProofError: as :meth:`next_finished` does.
        """
        for job in jobs:
            self._workers.submit(job)
        for _ in jobs:
            yield self.next_finished()

    def _receive(self) -> None:
        """Keep all that comes at one moment, whatever fails of it, then raise what was an error."""
        outcomes = self._workers.wait()
        if not outcomes:
            raise RuntimeError(f"{self._workers} waited, and had nothing to say of any job")
        errors: list[Exception] = []
        for outcome in outcomes:
            try:
                self._keep(outcome)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _keep(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            raise outcome.error
        if outcome.curve is not None:
            self._store.put(outcome.task, outcome.curve)
            self._ready.append(TrainingRun(outcome.task, outcome.curve, from_store=False))
        if outcome.attempt is not None:
            self._store.add_attempt(outcome.task, outcome.attempt)
            self.attempts.append(Attempt(outcome.task, outcome.attempt))


NextTasks = Callable[[Sequence[TrainingRun]], Sequence[TrainingTask]]
"""From the runs that a candidate has so far to its next tasks; none when it needs no more."""


def at_once(tasks: Sequence[TrainingTask]) -> NextTasks:
    """All of these, and then no more."""
    return lambda done: [] if done else tasks


def follow(
    candidates: Mapping[Key, NextTasks],
    runs: Runs,
    longest_first: Callable[[TrainingTask], tuple[int, int]],
) -> Iterator[tuple[Key, tuple[TrainingRun, ...]]]:
    """Run every candidate's tasks to their end, all side by side.

    Args:
        candidates: what each wants next. It is asked again when all that it asked for is done, and
            must be a function of those runs, so that the order in which they finish is no matter.
        runs: trains.
        longest_first: sorts the tasks that are known at the start.

    Yields:
        Each key with its runs in the order of its tasks, as soon as it needs no more.
    """
    named: dict[Key, list[TrainingTask]] = {key: [] for key in candidates}
    done: dict[TrainingTask, TrainingRun] = {}
    waited_for: set[TrainingTask] = set()
    open_keys = list(candidates)

    def runs_of(key: Key) -> tuple[TrainingRun, ...]:
        return tuple(done[task] for task in named[key])

    def ask(keys: Sequence[Key]) -> list[tuple[Key, tuple[TrainingRun, ...]]]:
        """Ask what these want next; those that want nothing have come to their end."""
        ended, fresh = [], []
        for key in keys:
            tasks = candidates[key](runs_of(key))
            while tasks and all(task in done for task in tasks):  # another has the same plan
                named[key] += tasks
                tasks = candidates[key](runs_of(key))
            named[key] += tasks
            fresh += [task for task in tasks if task not in done]
            if not tasks:
                ended.append((key, runs_of(key)))
                open_keys.remove(key)
        for task in sorted(dict.fromkeys(fresh), key=longest_first):
            if task not in waited_for:
                waited_for.add(task)
                runs.submit(task)
        return ended

    yield from ask(list(open_keys))
    while open_keys:
        run = runs.next_finished()
        waited_for.discard(run.task)
        done[run.task] = run
        ready = [key for key in open_keys if all(task in done for task in named[key])]
        yield from ask(ready)
