"""Training runs through the evaluation store: what is known is looked up, the rest is trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.trials.store import EvaluationStore

Key = TypeVar("Key")


@dataclass(frozen=True)
class TrainingRun:
    """A task with its curve, and whether the store knew it before."""

    task: TrainingTask
    curve: LearningCurve
    from_store: bool


class Workers(Protocol):
    """Where runs happen; see :class:`pipeline.trials.pool.WorkerPool`."""

    def submit(self, task: TrainingTask, weights_file: Path | None = None) -> None:
        """Have a task trained."""
        ...

    def next_finished(self) -> tuple[TrainingTask, LearningCurve]:
        """Wait for any of the submitted tasks that has not been returned yet."""
        ...


class Runs(Protocol):
    """What answers training tasks, in any order; see :class:`TrainingRuns`."""

    def submit(self, task: TrainingTask) -> None:
        """Ask for a task that is not being waited for already."""
        ...

    def next_finished(self) -> TrainingRun:
        """Wait for any of the tasks that were asked for."""
        ...


class TrainingRuns:
    """Answers training tasks from the store, or has them trained by the workers.

    Args:
        store: looked into. It is the pool that puts each result there, at its receipt.
        pool: trains.
    """

    def __init__(self, store: EvaluationStore, pool: Workers) -> None:
        self._store = store
        self._pool = pool
        self._known: deque[TrainingRun] = deque()

    def submit(self, task: TrainingTask) -> None:
        """Ask for a task that is not being waited for already."""
        curve = self._store.get(task)
        if curve is None:
            self._pool.submit(task)
        else:
            self._known.append(TrainingRun(task, curve, from_store=True))

    def next_finished(self) -> TrainingRun:
        """Wait for any of the tasks that were asked for; known ones come first."""
        if self._known:
            return self._known.popleft()
        task, curve = self._pool.next_finished()
        return TrainingRun(task, curve, from_store=False)


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

    def ask(keys: Sequence[Key]) -> list[tuple[Key, tuple[TrainingRun, ...]]]:
        """Ask what these want next; those that want nothing have come to their end."""
        ended, fresh = [], []
        for key in keys:
            own = tuple(done[task] for task in named[key])
            tasks = candidates[key](own)
            while tasks and all(
                task in done for task in tasks
            ):  # another candidate has the same plan
                named[key] += tasks
                own = tuple(done[task] for task in named[key])
                tasks = candidates[key](own)
            named[key] += tasks
            fresh += [task for task in tasks if task not in done]
            if not tasks:
                ended.append((key, own))
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
