"""Where training runs happen: worker processes, each with its own network and one thread.

One thread each, because one and two threads give different bits; so a result depends neither on the
number of workers nor on which of them ran it. A run whose worker or device is lost is given to
another worker, and is never a score.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Self

from pipeline.errors import PipelineError
from pipeline.trials.jobs import Job, Outcome
from pipeline.trials.side_by_side import count_gpus
from pipeline.trials.worker import Answer, TrainerSetup, Worker, start_trainer, train

if TYPE_CHECKING:
    from biotune.finetuning.fitness import Trainer

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""A run is tried this often in all, then the search stops: the next worker would be lost too."""


class LostWorkerError(PipelineError):
    """A run was lost with its worker again and again: it has no result, and is not a score."""


@dataclass
class _Waiting:
    """A job, and why it was tried before."""

    job: Job
    reasons: list[str] = field(default_factory=list)


class WorkerPool:
    """A number of worker processes; use it as a context manager.

    Args:
        setup: of the network that each worker builds, once.
        workers: how many, at least 1.
        worker: makes one for a device.
    """

    def __init__(
        self,
        setup: TrainerSetup,
        workers: int,
        worker: Callable[[TrainerSetup, str], Worker] = Worker,
    ) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._busy: dict[Worker, _Waiting] = {}
        self._not_begun: deque[Outcome] = deque()
        devices = worker_devices(setup.compute.device, workers)
        self._idle = [worker(setup, device) for device in devices]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # An interrupted search must not wait for minutes of training; what had finished is kept.
        for worker in [*self._busy, *self._idle]:
            worker.kill()
        self._busy.clear()
        self._idle.clear()
        self._waiting.clear()

    def submit(self, job: Job) -> None:
        """Have a job done as soon as a worker is free."""
        self._waiting.append(_Waiting(job))
        self._assign()

    def wait(self) -> list[Outcome]:
        """Wait until something becomes of one of the submitted jobs, and say what.

        Of one, because whatever is handed on is kept at once: what another worker may do meanwhile
        must not stand between a result and the disk. A run that was lost :data:`MOST_ATTEMPTS`
        times comes to a :class:`LostWorkerError`.
        """
        self._assign()
        if self._not_begun:
            return [self._not_begun.popleft()]
        if not self._busy:
            raise ValueError("no job is being waited for: submit one first")
        by_connection = {worker.connection: worker for worker in self._busy}
        return self._take(by_connection[wait(list(by_connection))[0]])  # type: ignore[index]

    def _assign(self) -> None:
        """Give what waits to the workers that are free."""
        while self._waiting and self._idle:
            worker, waiting = self._idle.pop(), self._waiting.popleft()
            self._busy[worker] = waiting
            try:
                worker.start(waiting.job)
            except OSError as error:  # there can be no more processes
                self._idle.append(self._forget(worker))
                self._not_begun.append(Outcome(waiting.job.task, error=error))

    def _forget(self, worker: Worker) -> Worker:
        """A worker that is no longer busy."""
        del self._busy[worker]
        return worker

    def _take(self, worker: Worker) -> list[Outcome]:
        """A worker's answer, or its loss."""
        waiting = self._busy[worker]
        try:
            answer = worker.answer()
        except Exception as error:  # of an answer that cannot be read here
            worker.kill()
            answer = Answer(error=error)
        self._forget(worker)
        if answer.lost is not None:
            return self._lost(worker, waiting, answer)
        self._idle.append(worker)
        return outcomes_of(waiting.job, answer)

    def _lost(self, worker: Worker, waiting: _Waiting, answer: Answer) -> list[Outcome]:
        """Have the run done elsewhere, unless it was lost too often."""
        worker.kill()
        task, reason = waiting.job.task, str(answer.lost)
        waiting.reasons.append(reason)
        outcomes = [Outcome(task, attempt=reason)]
        others = [*self._busy, *self._idle]
        if not (answer.device_lost and others):  # a lost device is left alone while others work
            self._idle.insert(0, worker)  # last in turn: another may do better
        if len(waiting.reasons) >= MOST_ATTEMPTS:
            error = LostWorkerError(
                f"a training run was lost {MOST_ATTEMPTS} times ({'; '.join(waiting.reasons)}): "
                f"seed {task.seed} of {task.plan}. It has no score. What had finished is kept: run "
                "again to go on, with a smaller runtime.workers if memory was short"
            )
            return [*outcomes, Outcome(task, error=error)]
        log.warning("a training run is tried again elsewhere: %s", reason)
        self._waiting.appendleft(waiting)
        return outcomes


class InProcess:
    """Trains in this process, one job after the other: for a debugger, or a profiler.

    To the same bits as worker processes: this one computes on one thread from then on. A run that
    kills its process takes this one along.

    Args:
        setup: of the network, which is built with the first job.
    """

    def __init__(self, setup: TrainerSetup) -> None:
        self._setup = setup
        self._trainer: Trainer | None = None
        self._waiting: deque[Job] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    def submit(self, job: Job) -> None:
        """Have a job done when it is waited for."""
        self._waiting.append(job)

    def wait(self) -> list[Outcome]:
        """Do the next job, and say what became of it."""
        if not self._waiting:
            raise ValueError("no job is being waited for: submit one first")
        job = self._waiting.popleft()
        try:
            if self._trainer is None:
                self._trainer = start_trainer(self._setup)
            return outcomes_of(job, train(self._trainer, job))
        except Exception as error:
            return [Outcome(job.task, error=error)]


def outcomes_of(job: Job, answer: Answer) -> list[Outcome]:
    """What an answer says of its job; memory that ran out is an attempt of its own."""
    if answer.error is not None:
        return [Outcome(job.task, error=answer.error)]
    if answer.curve is None:
        error = RuntimeError("a worker answered with neither a curve nor an error")
        return [Outcome(job.task, error=error)]
    attempts = [
        Outcome(job.task, attempt=f"out of memory: {reason}") for reason in answer.out_of_memory[:1]
    ]
    return [Outcome(job.task, curve=answer.curve), *attempts]


def worker_devices(device: str, workers: int) -> list[str]:
    """The device of each worker: ``cuda`` stands for all GPUs, in turn."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{worker % count_gpus(device)}" for worker in range(workers)]
