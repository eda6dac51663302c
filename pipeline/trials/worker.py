"""One worker process: builds its network once, then trains what it is told, on one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Final

from pipeline.errors import PipelineError
from pipeline.garbage import collect_garbage_seldom
from pipeline.trials.code_version import code_hash
from pipeline.trials.jobs import Job

if TYPE_CHECKING:
    import torch

    from biotune.finetuning.compute import Compute
    from biotune.finetuning.fitness import Trainer
    from biotune.finetuning.learning_curve import LearningCurve

_DEVICE_IS_LOST: Final = (
    "CUDA error",
    "cuDNN error",
    "CUBLAS_STATUS",
    "No CUDA GPUs are available",
    "NVML",
    "HIP error",
)
"""What torch says when a GPU has failed or gone; all but running out of memory."""

_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM}
"""What ends the main process in order, and its workers only through it."""


@dataclass(frozen=True)
class TrainerSetup:
    """What each worker builds its network from; see :class:`biotune.finetuning.fitness.Trainer`.

    Attributes:
        code: :func:`~pipeline.trials.code_version.code_hash` when the stage began; empty: any.
    """

    prepared: Path
    backbone: str
    weights: str
    compute: Compute
    feature_cache_bytes: int = 0
    code: str = ""

    def build(self) -> Trainer:
        """The network, in this process. Loads torch."""
        from biotune.finetuning.fitness import Trainer

        return Trainer(
            self.prepared, self.backbone, self.weights, self.compute, self.feature_cache_bytes
        )


@dataclass(frozen=True)
class Answer:
    """What became of a job.

    Attributes:
        curve: of the run; None if there is none.
        out_of_memory: what was said each time that memory ran out.
        error: what the caller must hear of.
        lost: why the worker can work no more.
        device_lost: whether that is its device's fault.
    """

    curve: LearningCurve | None = None
    out_of_memory: tuple[str, ...] = ()
    error: Exception | None = None
    lost: str | None = None
    device_lost: bool = False


class Worker:
    """A worker process, seen from the main one. It is started with its first job.

    Args:
        setup: of the network that it builds.
        device: that it computes on.
    """

    def __init__(self, setup: TrainerSetup, device: str) -> None:
        self.device = device
        self._setup = replace(setup, compute=replace(setup.compute, device=device))
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """Can be read when :meth:`answer` is there."""
        if self._connection is None:
            raise RuntimeError("this worker has no job")
        return self._connection

    def start(self, job: Job) -> None:
        """Have a job done, by a new process if the last one is gone."""
        if self._process is None or not self._process.is_alive():
            self.kill()
            self._start_process()
        with suppress(OSError):  # it is gone, as its answer will say
            self.connection.send(job)

    def answer(self) -> Answer:
        """What became of the job."""
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError):
            if self._process is not None:
                self._process.join(timeout=10)  # its own end says more than ours would
                self._process.kill()
            code = self._end()
            return Answer(lost=f"its worker process died ({_described(code)})")
        return answer

    def kill(self) -> None:
        """End the process at once, if there is one, and wait until it is gone."""
        if self._process is not None and self._process.pid is not None:  # it was really started
            self._process.kill()
            self._end()

    def _start_process(self) -> None:
        # Forking a process that holds threads or a CUDA context is not safe.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self._setup, theirs), daemon=True)
        # Ctrl-C reaches the whole process group, also while a worker is starting and cannot yet
        # ignore it: it inherits the mask. The tracker, which would be started on the way, would
        # lift it.
        resource_tracker.ensure_running()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            theirs.close()

    def _end(self) -> int | None:
        """Wait until the process is gone; its exit code."""
        if self._process is None:
            return None
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        self.connection.close()
        self._process = self._connection = None
        return code


def _described(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
    return f"exit code {code}"


def _work(setup: TrainerSetup, connection: Connection) -> None:
    """The worker process: answer jobs until it is killed."""
    collect_garbage_seldom()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    trainer: Trainer | None = None
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            if trainer is None:
                trainer = start_trainer(setup)
            answer = train(trainer, job)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = answer_of(error, setup.compute.device)
        try:
            connection.send(answer)
        except (TypeError, AttributeError, PicklingError):  # of an error that cannot travel
            connection.send(Answer(error=RuntimeError(str(answer.error))))
        if answer.lost is not None:
            return  # nothing more can be computed in this process


def start_trainer(setup: TrainerSetup) -> Trainer:
    """Build the network in this process, which computes on one thread from now on.

    Raises:
        PipelineError: if the code that trains is not what it was when the stage began.
    """
    import torch

    from biotune.finetuning.compute import keep_freed_memory

    if setup.code and setup.code != code_hash():
        raise PipelineError(
            "the code that trains was changed while this stage runs, and curves of two codes must "
            "not be mixed: start it again; what had finished is kept"
        )
    torch.set_num_threads(1)
    keep_freed_memory()
    return setup.build()


def _end_with_parent() -> None:
    """Wait for the main process, and leave with it: a killed search must leave nothing running."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def train(trainer: Trainer, job: Job) -> Answer:
    """Do a job; what it cannot do is raised."""
    from biotune.finetuning.progress import ProgressFile

    file = job.progress_file
    progress = None if file is None else ProgressFile(file, run=file.stem)
    result = trainer.train(job.task, keep_best=job.weights_file is not None, progress=progress)
    if job.weights_file is not None and result.best_state is not None:
        _save(result.best_state, job.weights_file)
    return Answer(result.curve, result.out_of_memory)


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, file)
    except SafetensorError as error:  # which is what it makes of a full disk
        raise OSError(f"{file} cannot be written ({error}): free space there, run again") from error


def answer_of(error: Exception, device: str) -> Answer:
    """What an error says: that the device is lost, or what the caller must hear."""
    said = str(error).partition("\n")[0]
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_IS_LOST):
        return Answer(lost=f"the device {device} failed ({said})", device_lost=True)
    return Answer(error=error)
