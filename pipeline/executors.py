"""Where training runs happen: worker processes, each with its own network and one thread.

One thread each, because one and two threads give different bits; so a result depends neither on the
number of workers nor on which of them ran it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from joblib import cpu_count  # minds affinity and a container's CPU limit

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from biotune.finetuning.compute import Compute
    from biotune.finetuning.fitness import Trainer, TrainingTask
    from biotune.finetuning.learning_curve import LearningCurve


class LostWorkerError(PipelineError):
    """A worker process died: its run has no result, and is not a score."""


@dataclass(frozen=True)
class TrainerSetup:
    """What each worker builds its network from; see :class:`biotune.finetuning.fitness.Trainer`."""

    prepared: Path
    backbone: str
    weights: str
    compute: Compute
    feature_cache_bytes: int = 0

    def build(self) -> Trainer:
        """The network, in this process. Loads torch."""
        from biotune.finetuning.fitness import Trainer

        return Trainer(
            self.prepared, self.backbone, self.weights, self.compute, self.feature_cache_bytes
        )


class WorkerPool:
    """A number of worker processes; use it as a context manager.

    Args:
        setup: of the network that each worker builds, once.
        workers: how many, at least 1.
    """

    def __init__(self, setup: TrainerSetup, workers: int) -> None:
        # Forking a process that holds threads or a CUDA context is not safe.
        context = multiprocessing.get_context("spawn")
        devices = context.SimpleQueue()  # each worker takes one
        for device in worker_devices(setup.compute.device, workers):
            devices.put(device)
        self._executor = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(setup, devices),
        )
        self._running: dict[Future[LearningCurve], TrainingTask] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:  # an interrupted search must not wait for minutes of training
            for process in multiprocessing.active_children():
                process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: TrainingTask, weights_file: Path | None = None) -> None:
        """Have a task run as soon as a worker is free.

        Args:
            task: what to train.
            weights_file: where to write its best epoch's weights (safetensors), or None.
        """
        self._running[self._executor.submit(_train, task, weights_file)] = task

    def next_finished(self) -> tuple[TrainingTask, LearningCurve]:
        """Wait for any submitted task that has not been returned yet, and return it.

        Raises:
            LostWorkerError: if a worker process died.
            ValueError, FreezeProofError: as :meth:`Trainer.train` does.
        """
        finished, _ = wait(self._running, return_when=FIRST_COMPLETED)
        future = next(one for one in self._running if one in finished)
        try:
            return self._running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise LostWorkerError(
                "a worker process died (killed, or out of the machine's memory). What had finished "
                "is kept: run again to go on, with a smaller runtime.workers if memory was short."
            ) from error

    def train(
        self, tasks: Iterable[tuple[TrainingTask, Path | None]]
    ) -> Iterator[tuple[TrainingTask, LearningCurve]]:
        """Run tasks side by side, and yield each with its curve as soon as it is done.

        Args:
            tasks: as :meth:`submit` takes them.

        Raises:
            LostWorkerError, ValueError, FreezeProofError: as :meth:`next_finished` does.
        """
        for task, weights_file in tasks:
            self.submit(task, weights_file)
        while self._running:
            yield self.next_finished()


def resolve_workers(workers: Literal["auto"] | int, device: str) -> int:
    """How many workers ``runtime.workers`` means: one per usable core on CPU, one per GPU.

    One thread each: two workers of one thread finish sooner than one of two, as
    ``benchmarks/workers.py`` measures.
    """
    if workers != "auto":
        return workers
    return int(cpu_count()) if device == "cpu" else _gpus(device)


def worker_devices(device: str, workers: int) -> list[str]:
    """The device of each worker: ``cuda`` stands for all GPUs, in turn."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{worker % _gpus(device)}" for worker in range(workers)]


def _gpus(device: str) -> int:
    """How many GPUs a device's name stands for, at least 1."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


_trainer: Trainer | None = None  # each worker process's own, built by _start_worker


def _start_worker(setup: TrainerSetup, devices: SimpleQueue[str]) -> None:
    global _trainer
    import torch

    from biotune.finetuning.compute import keep_freed_memory

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole process group; the main process ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    compute = replace(setup.compute, device=devices.get())
    _trainer = replace(setup, compute=compute).build()


def _end_with_parent() -> None:
    """Wait for the main process, and leave with it: a killed search must leave nothing running."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(task: TrainingTask, weights_file: Path | None) -> LearningCurve:
    from safetensors.torch import save_file

    if _trainer is None:
        raise RuntimeError("_train runs in a worker process that _start_worker has set up")
    result = _trainer.train(task, keep_best=weights_file is not None)
    if weights_file is not None and result.best_state is not None:
        save_file({n: t.contiguous().cpu() for n, t in result.best_state.items()}, weights_file)
    return result.curve
