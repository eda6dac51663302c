"""Worker processes: the same result from any of them, and none left behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import ClassVar

import pytest
from safetensors.torch import load_file

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.images import prepare_images
from biotune.images.sources import open_source
from biotune.plan import FineTunePlan
from pipeline.trials.jobs import Job, Outcome, Workers
from pipeline.trials.pool import (
    MOST_ATTEMPTS,
    InProcess,
    LostWorkerError,
    WorkerPool,
    worker_devices,
)
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.worker import Answer, TrainerSetup, answer_of
from tests.pipeline.trainings import curve
from tests.threads import one_thread

ROOT = Path(__file__).parents[3]
BLOCKS = ("stem", *(f"blocks.{i}" for i in range(7)), "conv_head", "classifier")


def task(seed: int, *trained: str) -> TrainingTask:
    plan = FineTunePlan({block: 2.0 if block in trained else None for block in BLOCKS})
    return TrainingTask(plan, seed, TrainingSettings(1, 1, 16, 0.001))


TASKS = [
    task(0, "classifier"),
    task(1, "classifier"),
    task(0, "blocks.6", "classifier"),
    task(0, "conv_head"),
]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> TrainerSetup:
    folder = tmp_path_factory.mktemp("executors") / "prepared"
    source = open_source("digits", Path())
    prepare_images(source, folder, image_size=32, train_images=40, validation_images=40, seed=0)
    return TrainerSetup(folder, "efficientnet_lite0", "imagenet", Compute())


def train(setup: TrainerSetup, workers: int, tasks: list[TrainingTask]) -> list[LearningCurve]:
    with WorkerPool(setup, workers) if workers else InProcess(setup) as pool:
        outcomes = do(pool, [Job(task) for task in tasks])
    curves = {outcome.task: outcome.curve for outcome in outcomes}
    return [replace(curves[task], seconds=0.0) for task in tasks]


def do(pool: Workers, jobs: Sequence[Job]) -> list[Outcome]:
    """All that becomes of these jobs; an error is raised."""
    for job in jobs:
        pool.submit(job)
    outcomes: list[Outcome] = []
    while sum(outcome.curve is not None for outcome in outcomes) < len(jobs):
        outcomes += pool.wait()
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
    return outcomes


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Why runs were tried again."""
    return [outcome.attempt for outcome in outcomes if outcome.attempt is not None]


def test_any_number_of_workers_and_any_order_give_the_same_bits(setup: TrainerSetup) -> None:
    alone = train(setup, 1, TASKS)
    assert train(setup, 2, TASKS[::-1])[::-1] == alone
    with one_thread():
        assert train(setup, 0, TASKS) == alone  # in this process
    assert len({curve.train_loss for curve in alone}) == len(TASKS)


def test_the_best_weights_are_written_where_they_are_wanted(
    setup: TrainerSetup, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    with WorkerPool(setup, 1) as pool:
        do(pool, [Job(task, file) for task, file in zip(TASKS, files, strict=False)])
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert not first["classifier.weight"].equal(second["classifier.weight"])
    assert first["conv_head.weight"].equal(second["conv_head.weight"])


def test_an_error_in_a_worker_reaches_the_caller(setup: TrainerSetup) -> None:
    other = replace(TASKS[0], plan=FineTunePlan({"stem": 1.0}))
    with WorkerPool(setup, 1) as pool, pytest.raises(ValueError, match="not those of efficient"):
        do(pool, [Job(other)])


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_whose_worker_is_killed_is_done_by_another_to_the_same_bits(
    setup: TrainerSetup, kills: int
) -> None:
    long = replace(TASKS[0], settings=TrainingSettings(4, 4, 16, 0.001))
    (whole,) = train(setup, 1, [long])
    killed: set[int | None] = set()

    with WorkerPool(setup, 1) as pool:
        killer = threading.Thread(target=kill_workers, args=(kills, killed))
        killer.start()
        outcomes = do(pool, [Job(long)])
        killer.join()
    assert replace(outcomes[-1].curve, seconds=0.0) == whole
    assert {outcome.task for outcome in outcomes} == {long}
    died = "its worker process died (SIGKILL, perhaps for want of memory)"
    assert reasons(outcomes) == [died] * kills
    assert len(killed) == kills


def test_a_run_that_is_lost_three_times_stops_the_search_with_the_reason_and_no_score(
    setup: TrainerSetup,
) -> None:
    long = replace(TASKS[0], settings=TrainingSettings(1000, 1000, 16, 0.001))
    outcomes: list[Outcome] = []
    with WorkerPool(setup, 1) as pool:
        pool.submit(Job(long))
        killer = threading.Thread(target=kill_workers, args=(MOST_ATTEMPTS, set()))
        killer.start()
        while not outcomes or outcomes[-1].error is None:
            outcomes += pool.wait()
        killer.join()
    assert isinstance(outcomes[-1].error, LostWorkerError)
    assert re.search("lost 3 times .*SIGKILL.*run again to go on", str(outcomes[-1].error))
    assert len(reasons(outcomes)) == MOST_ATTEMPTS


def kill_workers(times: int, killed: set[int | None]) -> None:
    """Kill the one worker as soon as there is another than before."""
    while len(killed) < times:
        for process in multiprocessing.active_children():
            if process.pid not in killed:
                time.sleep(0.5)
                process.kill()
                killed.add(process.pid)
        time.sleep(0.05)


class ScriptedWorker:
    """Stands for a worker process: its connection is real, its answers are given.

    A GPU that fails cannot be had here; what torch says then is known.
    """

    lost: ClassVar[set[str]] = set()
    broken: ClassVar[set[int]] = set()
    started: ClassVar[list[str]] = []

    def __init__(self, _: TrainerSetup, device: str) -> None:
        self.device = device
        self.connection, self._theirs = multiprocessing.Pipe()

    def start(self, job: Job) -> None:
        self.job = job
        self.started.append(self.device)
        self._theirs.send(None)

    def answer(self) -> Answer:
        self.connection.recv()
        if self.device in self.lost:
            error = RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
            return answer_of(error, self.device)
        if self.job.task.seed in self.broken:
            return Answer(error=OSError(f"disk full at seed {self.job.task.seed}"))
        return Answer(curve(0.5))

    def kill(self) -> None:
        pass


def test_a_device_that_fails_is_left_alone_while_another_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(ScriptedWorker, "lost", {"cuda:1"})
    monkeypatch.setattr(ScriptedWorker, "started", [])
    setup = TrainerSetup(Path(), "b", "w", Compute("cuda", "bf16"))
    with WorkerPool(setup, 2, ScriptedWorker) as pool:
        outcomes = do(pool, [Job(task) for task in TASKS])
    assert ScriptedWorker.started.count("cuda:1") == 1
    assert reasons(outcomes) == [
        "the device cuda:1 failed (CUDA error: an illegal memory access was encountered)"
    ]


def test_a_device_that_fails_alone_is_attempt_and_then_the_search_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(ScriptedWorker, "lost", {"cuda:0"})
    monkeypatch.setattr(ScriptedWorker, "started", [])
    setup = TrainerSetup(Path(), "b", "w", Compute("cuda", "bf16"))
    with (
        WorkerPool(setup, 1, ScriptedWorker) as pool,
        pytest.raises(LostWorkerError, match="cuda:0 failed"),
    ):
        do(pool, [Job(TASKS[0])])
    assert ScriptedWorker.started == ["cuda:0"] * MOST_ATTEMPTS


@pytest.mark.parametrize("broken", [{0}, {2}, {0, 1}, {1, 2}])
def test_an_error_is_an_outcome_beside_those_that_come_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch, broken: set[int]
) -> None:
    monkeypatch.setattr(ScriptedWorker, "broken", broken)
    with WorkerPool(TrainerSetup(Path(), "b", "w", Compute()), 3, ScriptedWorker) as pool:
        for seed in range(3):
            pool.submit(Job(task(seed, "classifier")))
        outcomes = [outcome for _ in range(3) for outcome in pool.wait()]
    assert {outcome.task.seed for outcome in outcomes if outcome.error is not None} == broken
    assert {outcome.task.seed for outcome in outcomes if outcome.curve is not None} == (
        {0, 1, 2} - broken
    )


def test_an_answer_that_cannot_be_read_is_an_error_of_its_job_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(worker: ScriptedWorker) -> Answer:
        worker.connection.recv()
        if worker.job.task.seed == 1:
            raise TypeError("__init__() missing 1 required argument")
        return Answer(curve(0.5))

    monkeypatch.setattr(ScriptedWorker, "answer", unreadable)
    with WorkerPool(TrainerSetup(Path(), "b", "w", Compute()), 2, ScriptedWorker) as pool:
        for seed in range(3):
            pool.submit(Job(task(seed, "classifier")))
        outcomes = [outcome for _ in range(3) for outcome in pool.wait()]
    assert {outcome.task.seed for outcome in outcomes if outcome.curve is not None} == {0, 2}
    (failed,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert (failed.task.seed, str(failed.error)) == (1, "__init__() missing 1 required argument")


def test_a_worker_that_cannot_be_started_is_an_error_of_its_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: ScriptedWorker, job: Job) -> None:
        raise OSError(f"no more processes for seed {job.task.seed}")

    monkeypatch.setattr(ScriptedWorker, "start", refused)
    with WorkerPool(TrainerSetup(Path(), "b", "w", Compute()), 1, ScriptedWorker) as pool:
        for seed in range(2):
            pool.submit(Job(task(seed, "classifier")))
        said = {str(outcome.error) for _ in range(2) for outcome in pool.wait()}
    assert said == {f"no more processes for seed {seed}" for seed in range(2)}


def test_code_that_was_changed_since_the_stage_began_is_refused(setup: TrainerSetup) -> None:
    with one_thread(), InProcess(replace(setup, code="of before")) as pool:
        pool.submit(Job(TASKS[0]))
        (outcome,) = pool.wait()
    assert "was changed while this stage runs" in str(outcome.error)


@pytest.mark.parametrize("workers", [0, 1])
def test_waiting_for_nothing_is_refused(setup: TrainerSetup, workers: int) -> None:
    pool = WorkerPool(setup, workers) if workers else InProcess(setup)
    with pytest.raises(ValueError, match="submit one first"):
        pool.wait()


def test_in_this_process_an_error_is_an_outcome_too(setup: TrainerSetup) -> None:
    other = replace(TASKS[0], plan=FineTunePlan({"stem": 1.0}))
    with one_thread(), InProcess(setup) as pool:
        pool.submit(Job(other))
        (outcome,) = pool.wait()
    assert "not those of efficient" in str(outcome.error)


def test_weights_that_cannot_be_written_are_an_error_that_names_the_file(
    setup: TrainerSetup, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "weights.safetensors"
    with WorkerPool(setup, 1) as pool, pytest.raises(OSError, match=r"weights\.safetensors"):
        do(pool, [Job(TASKS[0], file)])


def test_the_first_worker_too_is_born_deaf_to_what_ends_the_main_process(tmp_path: Path) -> None:
    script = tmp_path / "main.py"  # a process of its own: the first start also starts a tracker
    script.write_text(
        f"""
from pathlib import Path
from biotune.finetuning.compute import Compute
from pipeline.trials.worker import TrainerSetup, Worker

if __name__ == "__main__":
    worker = Worker(TrainerSetup(Path({str(tmp_path)!r}), "b", "w", Compute()), "cpu")
    worker._start_process()
    print(Path(f"/proc/{{worker._process.pid}}/status").read_text())
    worker.kill()
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    status = subprocess.check_output([sys.executable, str(script)], text=True, env=environment)
    (blocked,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    for number in (signal.SIGINT, signal.SIGTERM):
        assert int(blocked, 16) & 1 << number - 1, f"{signal.Signals(number).name} reaches it"


def test_an_interruption_before_a_worker_has_started_stays_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SpawnProcess, "start", interrupted)
    setup = TrainerSetup(Path(), "b", "w", Compute())
    with pytest.raises(KeyboardInterrupt), WorkerPool(setup, 1) as pool:
        pool.submit(Job(TASKS[0]))


def test_no_worker_outlives_a_killed_search(setup: TrainerSetup, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        f"""
import multiprocessing
from pathlib import Path
from dataclasses import replace
from biotune.finetuning.training import Compute, TrainingSettings
from pipeline.trials.jobs import Job
from pipeline.trials.pool import WorkerPool
from pipeline.trials.worker import TrainerSetup
from tests.pipeline.trials.test_pool import TASKS

if __name__ == "__main__":
    setup = TrainerSetup(Path({str(setup.prepared)!r}), "efficientnet_lite0", "none", Compute())
    long = replace(TASKS[0], settings=TrainingSettings(1000, 1000, 16, 0.001))
    with WorkerPool(setup, 1) as pool:
        pool.submit(Job(TASKS[1]))
        pool.submit(Job(long))
        pool.wait()
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        pool.wait()
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as main:
        assert main.stdout is not None
        workers = [int(word) for word in main.stdout.readline().split()]
        assert workers
        main.kill()
    deadline = time.monotonic() + 20
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker is still there 20 s after its main process"
        time.sleep(0.1)


def test_auto_is_a_worker_per_core_on_cpu_and_one_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert resolve_workers("auto", "cpu") >= 1
    assert resolve_workers("auto", "cuda") == 3
    assert resolve_workers("auto", "cuda:1") == 1
    assert resolve_workers(7, "cuda") == 7


def test_workers_spread_over_all_gpus_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert worker_devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert worker_devices("cpu", 2) == ["cpu", "cpu"]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has waited for is not running any more.
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
