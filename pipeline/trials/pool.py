"""Where training runs happen: worker processes, each with its own network and one thread.

One thread each, because one and two threads give different bits; so a result depends neither on the
number of workers nor on which of them ran it. A run whose worker or device is lost is given to
another worker, and is never a score.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.errors import PipelineError
from pipeline.trials.side_by_side import count_gpus
from pipeline.trials.worker import Answer, Job, TrainerSetup, Worker

if TYPE_CHECKING:
    from biotune.finetuning.fitness import TrainingTask
    from biotune.finetuning.learning_curve import LearningCurve

__all__ = ["Attempt", "LostWorkerError", "TrainerSetup", "WorkerPool"]

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""A run is tried this often in all, then the search stops: the next worker would be lost too."""


class LostWorkerError(PipelineError):
    """A run was lost with its worker again and again: it has no result, and is not a score."""


@dataclass(frozen=True)
class Attempt:
    """A run that had no result, and was tried again.

    Attributes:
        task: what was trained.
        reason: why there was none.
    """

    task: TrainingTask
    reason: str

    def row(self) -> dict[str, object]:
        """One row of ``attempts.csv``."""
        own = self.task
        return {"seed": own.seed, "fold": own.fold, "reason": self.reason, "plan": str(own.plan)}


@dataclass
class _Waiting:
    """A job, and how often it was tried."""

    job: Job
    reasons: list[str] = field(default_factory=list)


class WorkerPool:
    """A number of worker processes; use it as a context manager.

    Args:
        setup: of the network that each worker builds, once.
        workers: how many, at least 1.
        on_attempt: called for every run that had no result and is tried again, or was given up.
        on_finished: called with every result at the moment of its receipt, before anything else can
            fail: what is to be kept is kept there.
    """

    def __init__(
        self,
        setup: TrainerSetup,
        workers: int,
        on_attempt: Callable[[Attempt], None] = lambda _: None,
        on_finished: Callable[[TrainingTask, LearningCurve], None] = lambda *_: None,
    ) -> None:
        self._on_attempt, self._on_finished = on_attempt, on_finished
        self._waiting: deque[_Waiting] = deque()
        self._finished: deque[tuple[TrainingTask, LearningCurve]] = deque()
        self._busy: dict[Worker, _Waiting] = {}
        devices = worker_devices(setup.compute.device, workers)
        self._idle = [Worker(setup, device) for device in devices]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An interrupted search must not wait for minutes of training; what had finished is kept.
        self._kill()

    def submit(
        self,
        task: TrainingTask,
        weights_file: Path | None = None,
        progress_file: Path | None = None,
    ) -> None:
        """Have a task run as soon as a worker is free.

        Args:
            task: what to train.
            weights_file: where to write its best epoch's weights (safetensors), or None.
            progress_file: where to keep how far it has come, and to go on from, or None.
        """
        self._waiting.append(_Waiting(Job(task, weights_file, progress_file)))
        self._assign()

    def next_finished(self) -> tuple[TrainingTask, LearningCurve]:
        """Wait for any submitted task that has not been returned yet, and return it.

        Raises:
            LostWorkerError: if a run's worker was lost :data:`MOST_ATTEMPTS` times.
            ValueError, OSError, FreezeProofError: as :meth:`Trainer.train` does.
        """
        while not self._finished:
            if not self._busy and not self._waiting:
                raise ValueError("no task is being waited for: submit one first")
            self._assign()
            by_connection = {worker.connection: worker for worker in self._busy}
            errors: list[Exception] = []
            for connection in wait(list(by_connection)):
                try:  # one answer that is an error must not cost the others
                    self._take(by_connection[connection])  # type: ignore[index]
                except Exception as error:
                    errors.append(error)
            if errors:
                raise errors[0]
        return self._finished.popleft()

    def train(
        self, jobs: Iterable[tuple[TrainingTask, Path | None, Path | None]]
    ) -> Iterator[tuple[TrainingTask, LearningCurve]]:
        """Run tasks side by side, and yield each with its curve as soon as it is done.

        Args:
            jobs: as :meth:`submit` takes them.

        Raises:
            LostWorkerError, ValueError, OSError, FreezeProofError: as :meth:`next_finished` does.
        """
        left = 0
        for job in jobs:
            self.submit(*job)
            left += 1
        for _ in range(left):
            yield self.next_finished()

    def _assign(self) -> None:
        """Give what waits to the workers that are free."""
        while self._waiting and self._idle:
            worker, waiting = self._idle.pop(), self._waiting.popleft()
            self._busy[worker] = waiting
            worker.start(waiting.job)

    def _take(self, worker: Worker) -> None:
        """A worker's answer, or its loss."""
        waiting = self._busy.pop(worker)
        answer = worker.answer()
        if answer.lost is not None:
            self._lost(worker, waiting, answer)
            return
        self._idle.append(worker)
        if answer.error is not None:
            raise answer.error
        if answer.curve is None:
            raise RuntimeError("a worker answered with neither a curve nor an error")
        self._on_finished(waiting.job.task, answer.curve)
        self._finished.append((waiting.job.task, answer.curve))
        for reason in answer.out_of_memory[:1]:
            self._on_attempt(Attempt(waiting.job.task, f"out of memory: {reason}"))

    def _lost(self, worker: Worker, waiting: _Waiting, answer: Answer) -> None:
        """Have the run done elsewhere, unless it was lost too often."""
        worker.kill()
        reason = str(answer.lost)
        waiting.reasons.append(reason)
        self._on_attempt(Attempt(waiting.job.task, reason))
        others = [*self._busy, *self._idle]
        if not (answer.device_lost and others):  # a lost device is left alone while others work
            self._idle.insert(0, worker)  # last in turn: another may do better
        if len(waiting.reasons) >= MOST_ATTEMPTS:
            raise LostWorkerError(
                f"a training run was lost {MOST_ATTEMPTS} times ({'; '.join(waiting.reasons)}): "
                f"seed {waiting.job.task.seed} of {waiting.job.task.plan}. It has no score. What "
                "had finished is kept: run again to go on, with a smaller runtime.workers if "
                "memory was short"
            )
        log.warning("a training run is tried again elsewhere: %s", reason)
        self._waiting.appendleft(waiting)
        self._assign()

    def _kill(self) -> None:
        for worker in [*self._busy, *self._idle]:
            worker.kill()
        self._busy.clear()
        self._idle.clear()
        self._waiting.clear()


def worker_devices(device: str, workers: int) -> list[str]:
    """The device of each worker: ``cuda`` stands for all GPUs, in turn."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{worker % count_gpus(device)}" for worker in range(workers)]
