"""Two runs that may end differently never share an entry of the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from biotune.data.division import Division
from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.training import TrainingSettings
from pipeline.trials.store import EvaluationStore, shared_inputs
from tests.pipeline.trainings import task


def with_settings(**changes: object) -> TrainingTask:
    values = {"epochs": 2, "patience": 1, "batch_size": 4, "base_lr": 0.001} | changes
    return replace(task(), settings=TrainingSettings(**values))  # type: ignore[arg-type]


def of_fold(fold: int, folds: int) -> TrainingTask:
    return replace(task(), division=Division(fold, folds))


def test_no_two_runs_that_differ_in_one_respect_have_one_key(tmp_path: Path) -> None:
    tasks = [
        task(),
        task(seed=1),
        task({"stem": None, "middle": 2.0, "top": None, "head": 1.01}),
        of_fold(0, 2),
        of_fold(1, 2),
        of_fold(1, 3),
        replace(task(), division=Division(resampled=0)),
        replace(task(), division=Division(resampled=1)),
        with_settings(epochs=3),
        with_settings(patience=2),
        with_settings(epochs=3, patience=2),
        with_settings(batch_size=8),
        with_settings(base_lr=0.002),
        *(with_settings(metric=metric) for metric in ("accuracy", "f1_macro", "auroc")),
        *(with_settings(class_weights=kind) for kind in ("balanced", "effective_number")),
        with_settings(label_smoothing=0.1),
        *(with_settings(augment=kind) for kind in ("flip", "randaugment", "trivialaugment")),
    ]
    store = EvaluationStore(tmp_path, shared_inputs("data", "network", "weights", Compute()))
    keys = {store.key(run): run for run in tasks}
    assert list(keys.values()) == tasks
    assert store.key(with_settings()) == store.key(task())
