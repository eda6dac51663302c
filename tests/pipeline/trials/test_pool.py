"""Worker processes: the same result from any of them, and none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
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
from pipeline.trials.pool import (
    MOST_ATTEMPTS,
    Attempt,
    LostWorkerError,
    TrainerSetup,
    WorkerPool,
    worker_devices,
)
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.worker import Answer, Job, _answer_of
from tests.pipeline.trainings import curve

ROOT = Path(__file__).parents[2]
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
    with WorkerPool(setup, workers) as pool:
        curves = dict(pool.train((one, None, None) for one in tasks))
    return [replace(curves[one], seconds=0.0) for one in tasks]


def test_any_number_of_workers_and_any_order_give_the_same_bits(setup: TrainerSetup) -> None:
    alone = train(setup, 1, TASKS)
    assert train(setup, 2, TASKS[::-1])[::-1] == alone
    assert len({curve.train_loss for curve in alone}) == len(TASKS)


def test_the_best_weights_are_written_where_they_are_wanted(
    setup: TrainerSetup, tmp_path: Path
) -> None:
    files = {one: tmp_path / f"{i}.safetensors" for i, one in enumerate(TASKS[:2])}
    with WorkerPool(setup, 1) as pool:
        assert dict(pool.train((*one, None) for one in files.items())).keys() == files.keys()
    first, second = (load_file(file) for file in files.values())
    assert first.keys() == second.keys()
    assert not first["classifier.weight"].equal(second["classifier.weight"])
    assert first["conv_head.weight"].equal(second["conv_head.weight"])


def test_an_error_in_a_worker_reaches_the_caller(setup: TrainerSetup) -> None:
    other = replace(TASKS[0], plan=FineTunePlan({"stem": 1.0}))
    with WorkerPool(setup, 1) as pool, pytest.raises(ValueError, match="not those of efficient"):
        list(pool.train([(other, None, None)]))


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_whose_worker_is_killed_is_done_by_another_to_the_same_bits(
    setup: TrainerSetup, kills: int
) -> None:
    long = replace(TASKS[0], settings=TrainingSettings(4, 4, 16, 0.001))
    (whole,) = train(setup, 1, [long])
    attempts: list[Attempt] = []
    killed: set[int | None] = set()

    with WorkerPool(setup, 1, attempts.append) as pool:
        pool.submit(long)
        killer = threading.Thread(target=kill_workers, args=(kills, killed))
        killer.start()
        _, curve = pool.next_finished()
        killer.join()
    assert replace(curve, seconds=0.0) == whole
    assert [one.task for one in attempts] == [long] * kills
    assert {one.reason for one in attempts} == {
        "its worker process died (SIGKILL, perhaps for want of memory)"
    }
    assert len(killed) == kills


def test_a_run_that_is_lost_three_times_stops_the_search_with_the_reason_and_no_score(
    setup: TrainerSetup,
) -> None:
    attempts: list[Attempt] = []
    long = replace(TASKS[0], settings=TrainingSettings(1000, 1000, 16, 0.001))
    with WorkerPool(setup, 1, attempts.append) as pool:
        pool.submit(long)
        killer = threading.Thread(target=kill_workers, args=(MOST_ATTEMPTS, set()))
        killer.start()
        with pytest.raises(LostWorkerError, match=r"lost 3 times .*SIGKILL.*run again to go on"):
            pool.next_finished()
        killer.join()
    assert len(attempts) == MOST_ATTEMPTS


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
            return _answer_of(error, self.device)
        if self.job.task.seed in self.broken:
            return Answer(error=OSError(f"disk full at seed {self.job.task.seed}"))
        return Answer(curve(0.5))

    def kill(self) -> None:
        pass


def test_a_device_that_fails_is_left_alone_while_another_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.Worker", ScriptedWorker)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(ScriptedWorker, "lost", {"cuda:1"})
    monkeypatch.setattr(ScriptedWorker, "started", [])
    attempts: list[Attempt] = []
    compute = Compute("cuda", "bf16")
    with WorkerPool(TrainerSetup(Path(), "b", "w", compute), 2, attempts.append) as pool:
        assert len(dict(pool.train((one, None, None) for one in TASKS))) == len(TASKS)
    assert ScriptedWorker.started.count("cuda:1") == 1
    (attempt,) = attempts
    assert attempt.reason == (
        "the device cuda:1 failed (CUDA error: an illegal memory access was encountered)"
    )


def test_a_device_that_fails_alone_is_tried_again_and_then_the_search_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.Worker", ScriptedWorker)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(ScriptedWorker, "lost", {"cuda:0"})
    monkeypatch.setattr(ScriptedWorker, "started", [])
    setup = TrainerSetup(Path(), "b", "w", Compute("cuda", "bf16"))
    with WorkerPool(setup, 1) as pool, pytest.raises(LostWorkerError, match="cuda:0 failed"):
        list(pool.train([(TASKS[0], None, None)]))
    assert ScriptedWorker.started == ["cuda:0"] * MOST_ATTEMPTS


@pytest.mark.parametrize("broken", [{0}, {2}, {0, 1}, {1, 2}])
def test_what_had_finished_is_kept_whatever_else_came_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch, broken: set[int]
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.Worker", ScriptedWorker)
    monkeypatch.setattr(ScriptedWorker, "broken", broken)
    kept: list[int] = []
    setup = TrainerSetup(Path(), "b", "w", Compute())
    with WorkerPool(setup, 3, on_finished=lambda task, _: kept.append(task.seed)) as pool:
        for seed in range(3):
            pool.submit(task(seed, "classifier"))
        with pytest.raises(OSError, match=f"at seed [{''.join(map(str, broken))}]"):
            pool.next_finished()
    assert sorted(kept) == sorted({0, 1, 2} - broken)


def test_a_result_is_kept_before_anybody_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.trials.pool.Worker", ScriptedWorker)
    kept: list[TrainingTask] = []
    setup = TrainerSetup(Path(), "b", "w", Compute())
    with WorkerPool(setup, 2, on_finished=lambda task, _: kept.append(task)) as pool:
        for heard, _ in pool.train((one, None, None) for one in TASKS):
            assert heard in kept


def test_weights_that_cannot_be_written_are_an_error_that_names_the_file(
    setup: TrainerSetup, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "weights.safetensors"
    with WorkerPool(setup, 1) as pool, pytest.raises(OSError, match=r"weights\.safetensors"):
        list(pool.train([(TASKS[0], file, None)]))


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
        pool.submit(TASKS[0])


def test_no_worker_outlives_a_killed_search(setup: TrainerSetup, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        f"""
import multiprocessing
from pathlib import Path
from dataclasses import replace
from biotune.finetuning.training import Compute, TrainingSettings
from pipeline.trials.pool import TrainerSetup, WorkerPool
from tests.pipeline.test_executors import TASKS

if __name__ == "__main__":
    setup = TrainerSetup(Path({str(setup.prepared)!r}), "efficientnet_lite0", "none", Compute())
    long = replace(TASKS[0], settings=TrainingSettings(1000, 1000, 16, 0.001))
    with WorkerPool(setup, 1) as pool:
        results = pool.train([(TASKS[1], None, None), (long, None, None)])
        next(results)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        next(results)
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
