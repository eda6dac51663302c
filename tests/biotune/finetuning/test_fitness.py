"""Fitness over seeds and folds, and a trainer that forgets each task before the next."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from biotune.data.division import Division
from biotune.finetuning import fitness
from biotune.finetuning.fitness import Trainer, TrainingTask, evaluate
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import FitResult, TrainingSettings
from biotune.plan import Evaluation, FineTunePlan
from tests.biotune.finetuning import toy

SETTINGS = TrainingSettings(epochs=1, patience=1, batch_size=20, base_lr=0.001)


def curve(accuracies: tuple[float, ...], briers: tuple[float, ...], **changes) -> LearningCurve:
    values = {"trained_parameters": 7, "outcome": "finished", "seconds": 1.0} | changes
    return LearningCurve((1.0,) * len(briers), accuracies, briers, **values)


def full_plan(trainer: Trainer) -> FineTunePlan:
    return FineTunePlan(dict.fromkeys(trainer.backbone.blocks, 3.0))


def head_plan(trainer: Trainer) -> FineTunePlan:
    head = trainer.backbone.head
    return FineTunePlan({b: 1.0 if b == head else None for b in trainer.backbone.blocks})


def test_fitness_is_one_minus_the_mean_over_seeds_of_the_best_accuracy():
    curves = [curve((0.5, 0.75, 0.25), (0.9, 0.4, 0.2)), curve((0.25,), (0.8,))]
    evaluation = evaluate(curves)
    assert evaluation.fitness == pytest.approx(1 - (0.75 + 0.25) / 2)
    assert evaluation.brier == pytest.approx((0.4 + 0.8) / 2)  # at those epochs
    assert evaluation.trained_parameters == 7
    assert evaluation.outcome == "finished"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["finished", "diverged"], "diverged"),
        (["infeasible", "finished"], "infeasible"),
        (["diverged", "infeasible", "finished"], "infeasible"),
    ],
)
def test_one_failed_run_fails_the_plan(outcomes, expected):
    curves = [
        curve((0.9,), (0.1,)) if o == "finished" else curve((), (), outcome=o) for o in outcomes
    ]
    assert evaluate(curves) == Evaluation(1.0, None, 7, expected)


def test_a_run_that_diverged_after_good_epochs_is_still_failed():
    assert evaluate([curve((0.99,), (0.01,), outcome="diverged")]).fitness == 1.0


def test_no_runs_have_no_fitness():
    with pytest.raises(ValueError, match="at least one training run, got none"):
        evaluate([])


def test_folds_divide_a_split_and_never_mix_it_with_another(trainer):
    folds = [Division(fold, 2).indices(trainer.prepared) for fold in range(2)]
    for place, split in enumerate(("train", "validation")):
        whole = trainer.subset(split).indices
        parts = [fold[place] for fold in folds]
        assert np.array_equal(whole, trainer.prepared.indices(split))
        assert np.array_equal(whole, Division().indices(trainer.prepared)[place])
        assert np.array_equal(np.sort(np.concatenate(parts)), whole)
        assert [len(part) for part in parts] == [20, 20]


def test_a_fold_trains_on_its_part_and_validates_on_the_same_part(trainer, monkeypatch):
    seen = []

    def note(backbone, plan, train, validation, settings, **options):
        seen.append((train.indices, validation.indices, options["fold"], options["seed"]))
        return FitResult(curve((0.5,), (0.5,)), None)

    monkeypatch.setattr(fitness, "fit", note)
    for fold in (0, 1):
        trainer.train(TrainingTask(head_plan(trainer), 4, SETTINGS, Division(fold, 2)))
    for fold, (train, validation, told, seed) in enumerate(seen):
        expected = Division(fold, 2).indices(trainer.prepared)
        assert np.array_equal(train, expected[0])
        assert np.array_equal(validation, expected[1])
        assert (told, seed) == (fold, 4)
    assert not np.intersect1d(seen[0][0], seen[1][0]).size


def test_a_resampled_task_divides_the_same_images_anew_and_never_takes_test_images(
    trainer, monkeypatch
):
    seen = []

    def note(backbone, plan, train, validation, settings, **options):
        seen.append((train.indices, validation.indices))
        return FitResult(curve((0.5,), (0.5,)), None)

    monkeypatch.setattr(fitness, "fit", note)
    for resample in (5, 5, None):
        trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS, Division(resampled=resample)))
    (train, validation), again, prepared = seen
    both = np.concatenate([train, validation])
    assert np.array_equal(np.sort(both), np.sort(np.concatenate(prepared)))
    assert not np.intersect1d(both, trainer.prepared.indices("test")).size
    assert [len(train), len(validation)] == [40, 40]
    assert not np.array_equal(train, prepared[0])
    assert np.array_equal(train, again[0])


def test_every_task_starts_from_the_pretrained_tensors_buffers_included(trainer, monkeypatch):
    starts: list[dict[str, torch.Tensor]] = []
    real = fitness.fit

    def note(backbone, *args, **options):
        starts.append(toy.copy_of(backbone))
        return real(backbone, *args, **options)

    monkeypatch.setattr(fitness, "fit", note)
    network = trainer.backbone.network
    trainer.train(TrainingTask(full_plan(trainer), 0, SETTINGS))
    after = toy.copy_of(trainer.backbone)
    moved = [name for name in after if not torch.equal(after[name], starts[0][name])]
    assert {"conv_stem.weight", "bn1.running_mean", "bn1.num_batches_tracked"} < set(moved)
    trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS))
    assert toy.equal(starts[0], starts[1])
    assert trainer.backbone.network is network  # in place: nothing is built again


def test_loaded_tensors_are_what_the_network_predicts_with(trainer):
    result = trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS), keep_best=True)
    trainer.train(TrainingTask(full_plan(trainer), 0, SETTINGS))
    trainer.backbone.network.load_state_dict(result.best_state)
    assert toy.equal(trainer.backbone.network.state_dict(), result.best_state)


class Activations:
    """Stands for the tensors that a run holds when the memory is full."""


class FailingFit:
    """Runs out of memory this many times, then succeeds."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.left, self.calls = failures, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.held: list[weakref.ref[Activations]] = []

    def __call__(self, *args, **options) -> FitResult:
        self.calls += 1
        activations = Activations()
        self.held.append(weakref.ref(activations))
        if self.left:
            self.left -= 1
            raise type(self.error)(*self.error.args)  # anew: an exception holds its traceback
        return FitResult(curve((0.5,), (0.5,)), None)


@pytest.mark.parametrize(
    ("failures", "calls", "outcome"),
    [(0, 1, "finished"), (1, 2, "finished"), (2, 2, "infeasible")],
)
def test_a_run_without_memory_is_tried_once_more_and_then_infeasible(
    trainer, monkeypatch, failures, calls, outcome
):
    fit = FailingFit(failures)
    monkeypatch.setattr(fitness, "fit", fit)
    result = trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS))
    assert fit.calls == calls
    assert result.curve.outcome == outcome
    assert result.out_of_memory == ("CUDA out of memory",) * failures
    assert evaluate([result.curve]).outcome == outcome


def no_memory() -> Exception:
    """What torch really says on a CPU when there is none."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    return raised.value


@pytest.mark.parametrize("error", [no_memory(), MemoryError()], ids=["torch on a CPU", "Python"])
def test_no_memory_on_a_cpu_is_infeasible_too(trainer, monkeypatch, error):
    monkeypatch.setattr(fitness, "fit", FailingFit(2, error))
    result = trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS))
    assert result.curve.outcome == "infeasible"
    assert len(result.out_of_memory) == 2
    assert all(result.out_of_memory)


def test_caches_are_emptied_when_the_failed_run_holds_nothing_any_more(trainer, monkeypatch):
    fit = FailingFit(2)
    alive: list[bool] = []
    monkeypatch.setattr(fitness, "fit", fit)
    monkeypatch.setattr(trainer, "_empty_caches", lambda: alive.append(fit.held[-1]() is not None))
    trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS))
    assert alive == [False, False]


def test_other_errors_are_not_taken_for_missing_memory(trainer, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(fitness, "fit", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS))


def test_more_folds_than_images_of_a_class_are_refused(trainer):
    with pytest.raises(ValueError, match="30 folds need at least 30 images of every class"):
        trainer.train(TrainingTask(head_plan(trainer), 0, SETTINGS, Division(0, 30)))


@pytest.mark.parametrize(
    "wrong", [{"fold": 2, "folds": 2}, {"fold": -1}, {"folds": 2, "resampled": 0}]
)
def test_a_division_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="fold"):
        Division(**wrong)
