"""Processes that train and test, one thread each, and say what it took in CPU seconds."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from typing import Any, Self, TypeVar

import click

from benchmarks.held_out import HeldOutScores, train_and_test
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import FitResult
from pipeline.trials.jobs import Job, Outcome
from pipeline.trials.worker import TrainerSetup, start_trainer

_trainer: Trainer

Command = TypeVar("Command", bound=Callable[..., Any])


def running_options(command: Command) -> Command:
    """``--workers``, ``--nice`` and ``--limit-seconds`` of a command that trains for long."""
    options = (
        click.option(
            "--workers", type=click.IntRange(1), help="Runs side by side.  [default: all cores]"
        ),
        click.option("--nice", default=0, show_default=True, type=click.IntRange(0, 19)),
        click.option(
            "--limit-seconds",
            type=click.FloatRange(0, min_open=True),
            help="Start no run after so long; those that are running end.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def start_worker(setup: TrainerSetup, nice: int) -> None:
    """Build the network of this process, which leaves with its parent, however that ends."""
    global _trainer
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    os.nice(nice)
    _trainer = start_trainer(setup)


def _leave_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def trainer() -> Trainer:
    """Of this process, once :func:`start_worker` was called."""
    return _trainer


def timed(task: TrainingTask, *, keep_best: bool = False) -> FitResult:
    """Train in this process; the curve's seconds are CPU seconds."""
    begin = time.process_time()
    result = _trainer.train(task, keep_best=keep_best)
    seconds = time.process_time() - begin
    return replace(result, curve=replace(result.curve, seconds=seconds))


def train(task: TrainingTask) -> LearningCurve:
    """Train in this process, for the curve alone."""
    return timed(task).curve


def tested(task: TrainingTask) -> HeldOutScores:
    """Train and test in this process."""
    return train_and_test(task, _trainer)


class OutOfTime(Exception):  # noqa: N818  nothing has gone wrong
    """There is work left that may no longer be started."""


class TrainingProcesses:
    """Trains and tests side by side; use it as a context manager.

    It starts with empty feature caches, so that whoever is measured first does not pay for others.

    Args:
        pool: processes that :func:`start_worker` has set up.
        workers: how many of them there are.
        may_start: whether another run may be started.
        train, tested: what a process does, of a task.
    """

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        workers: int,
        may_start: Callable[[], bool] = lambda: True,
        train: Callable[[TrainingTask], LearningCurve] = train,
        tested: Callable[[TrainingTask], HeldOutScores] = tested,
    ) -> None:
        self._pool, self._workers, self._may_start = pool, workers, may_start
        self._train, self._tested = train, tested
        self._waiting: deque[tuple[Callable[[TrainingTask], Any], TrainingTask]] = deque()
        self._running: dict[Future[Any], TrainingTask] = {}

    @classmethod
    def open(
        cls, setup: TrainerSetup, workers: int, nice: int, may_start: Callable[[], bool]
    ) -> Self:
        """Start so many processes."""
        context = multiprocessing.get_context("spawn")
        initial = (setup, nice)
        pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=initial)
        return cls(pool, workers, may_start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, job: Job) -> None:
        """Have a job's task trained, as :class:`~pipeline.trials.jobs.Workers` do."""
        self._waiting.append((self._train, job.task))
        self._start()

    def wait(self) -> list[Outcome]:
        """What became of the tasks that have ended; at least one.

        Raises:
            OutOfTime: when none is running, and no other may be started.
        """
        return [
            Outcome(task, error=error) if error else Outcome(task, curve=future.result())
            for task, future in self._ended()
            for error in [_error(future)]
        ]

    def test(self, tasks: Iterable[TrainingTask]) -> Iterator[tuple[TrainingTask, HeldOutScores]]:
        """Train and test tasks while nothing else is waited for; each as soon as it has ended.

        Raises:
            OutOfTime: as :meth:`wait` does.
        """
        self._waiting += [(self._tested, task) for task in tasks]
        while self._waiting or self._running:
            for task, future in self._ended():
                yield task, future.result()

    def _ended(self) -> list[tuple[TrainingTask, Future[Any]]]:
        self._start()
        if not self._running:
            raise OutOfTime(f"{len(self._waiting)} runs may no longer be started")
        done = wait(self._running, return_when=FIRST_COMPLETED).done
        return [(self._running.pop(future), future) for future in done]

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._workers and self._may_start():
            function, task = self._waiting.popleft()
            self._running[self._pool.submit(function, task)] = task


def _error(future: Future[Any]) -> Exception | None:
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error
