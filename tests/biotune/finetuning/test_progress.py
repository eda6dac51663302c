"""A run that is killed between two epochs goes on to the same bits."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from biotune.finetuning import training
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.progress import Progress, ProgressFile
from biotune.finetuning.training import FitResult, fit
from biotune.plan import FineTunePlan
from tests.biotune.finetuning import toy


class Killed(BaseException):
    """Stands for the end of the process, right after an epoch's progress was written."""


def killed_after(epochs: int, **options) -> None:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == epochs:
            raise Killed

    with pytest.raises(Killed):
        run(on_epoch=count, **options)


def run(settings=None, network=None, **options) -> FitResult:
    torch.rand(3)  # whatever another process has drawn before
    chosen = settings or toy.settings(epochs=5, patience=5)
    return fit(
        network or toy.backbone(),
        toy.plan(middle=2.0, head=1.0),
        toy.subset(),
        toy.subset(start=1),
        chosen,
        seed=3,
        keep_best=True,
        **options,
    )


def same(first: FitResult, second: FitResult) -> bool:
    curves = [replace(fitted.curve, seconds=0.0) for fitted in (first, second)]
    return curves[0] == curves[1] and toy.equal(first.best_state, second.best_state)


@pytest.mark.parametrize("augment", ["none", "randaugment"])
@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path, epochs, augment):
    settings = toy.settings(epochs=5, patience=5, augment=augment)
    file = ProgressFile(tmp_path / "deep" / "run.pt", "this run")
    whole = run(settings)
    killed_after(epochs, settings=settings, progress=file)
    calls = []
    resumed = run(settings, progress=file, on_epoch=lambda: calls.append(None))
    assert same(whole, resumed)
    assert len(calls) == 5 - epochs
    assert resumed.curve.seconds > 0


def test_an_embedded_network_goes_on_to_the_same_bits(trainer: Trainer, tmp_path: Path) -> None:
    plan = FineTunePlan({b: 2.0 if i > 4 else None for i, b in enumerate(trainer.backbone.blocks)})
    task = TrainingTask(plan, 1, training.TrainingSettings(3, 3, 16, 0.001))
    whole = trainer.train(task, keep_best=True)
    file = ProgressFile(tmp_path / "run", "this run")

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        trainer.train(task, keep_best=True, progress=file, on_epoch=kill)
    trainer.train(replace(task, seed=9))  # the network is another in between
    assert same(whole, trainer.train(task, keep_best=True, progress=file))


def test_a_finished_run_is_read_and_not_trained(tmp_path, monkeypatch):
    file = ProgressFile(tmp_path / "run", "this run")
    whole = run(progress=file)
    monkeypatch.setattr(training._Run, "epoch", pytest.fail)
    assert same(whole, run(progress=file))
    file.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 100, -40, -1])
def test_a_flipped_bit_is_found_and_the_run_starts_anew(tmp_path, caplog, place):
    file = ProgressFile(tmp_path / "run", "this run")
    whole = run()
    killed_after(2, progress=file)
    content = bytearray(file.path.read_bytes())
    content[place] ^= 1
    file.path.write_bytes(content)
    assert same(whole, run(progress=file))
    assert "its checksum differs" in caplog.text


def test_another_runs_file_a_cut_one_and_none_are_not_used(tmp_path, caplog):
    file = ProgressFile(tmp_path / "run", "this run")
    assert file.read() is None
    assert not caplog.text
    file.write(Progress({"a": torch.ones(2)}, {"epochs": 1}))
    assert file.read().notes == {"epochs": 1}
    assert ProgressFile(file.path, "another").read() is None
    assert "it is of another run" in caplog.text
    file.path.write_bytes(file.path.read_bytes()[:10])
    assert file.read() is None


def test_a_place_that_cannot_be_written_names_the_file(tmp_path):
    (tmp_path / "file").touch()
    file = ProgressFile(tmp_path / "file" / "run", "this run")
    with pytest.raises(OSError, match=r"free space there and run again.*file/run"):
        file.write(Progress({}, {}))


def test_two_processes_at_one_run_do_not_take_each_others_file_away(tmp_path, monkeypatch):
    file = ProgressFile(tmp_path / "run", "this run")
    other = ProgressFile(tmp_path / "run", "this run")
    fsync, writing = os.fsync, []

    def meanwhile(descriptor: int) -> None:
        if not writing:
            writing.append(other)
            other.write(Progress({"a": torch.ones(2)}, {"epochs": 1}))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    file.write(Progress({"a": torch.ones(2)}, {"epochs": 2}))
    assert file.read().notes == {"epochs": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
