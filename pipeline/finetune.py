"""The finetune stage: train the winner, and the best recipe beside it, to be kept and compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from biotune.files import put_folder, scratch_beside
from biotune.finetuning.checkpoints import ModelCard, seed_file
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.plan import FineTunePlan
from pipeline.artifacts import check_writable, write_csv, write_json, written_beside
from pipeline.best_plan import read_plans, say_other_precision
from pipeline.errors import PipelineError
from pipeline.params import Params
from pipeline.reporting.console import percent, print_table
from pipeline.tracking.stage_run import TrackedRun
from pipeline.trials.jobs import Job
from pipeline.trials.machine import training_settings
from pipeline.trials.runs import TrainingRuns
from pipeline.workshop import Workshop


@dataclass(frozen=True)
class FinetuneFiles:
    """Where the finetune stage writes; each model is a ``.safetensors`` with a ``.json`` beside.

    Attributes:
        seeds: folder of the weights of every run; see
            :func:`~biotune.finetuning.checkpoints.seed_file`.
    """

    model: Path
    baseline: Path
    seeds: Path
    curves: Path
    metrics: Path


@dataclass(frozen=True)
class Finetuned:
    """One plan's runs.

    Attributes:
        name: of the plan.
        plan: what was trained.
        curves: training seed → curve, in the order of the seeds.
        weights: training seed → file with the tensors of the best epoch.
    """

    name: str
    plan: FineTunePlan
    curves: Mapping[int, LearningCurve]
    weights: Mapping[int, Path]

    @property
    def best_seed(self) -> int:
        """The seed that validated best; the lower Brier score if equal."""
        return min(self.curves, key=lambda seed: _validation_rank(self.curves[seed]))

    @property
    def best_score(self) -> float:
        """The kept model's validation score."""
        return max(self.scores)

    @property
    def scores(self) -> list[float]:
        """Best validation score of every seed."""
        return [max(curve.validation_score) for curve in self.curves.values()]


class FinetuningFailedError(PipelineError):
    """A final run diverged or ran out of memory."""


def run(params: Params, *, prepared: Path, best_plan: Path, files: FinetuneFiles) -> Finetuned:
    """Train the winner and the best recipe alike, and keep the best run of each.

    Each run's progress is kept in the home folder after every epoch until all are done; started
    again after a kill, runs go on from there.

    Args:
        params: the sections ``finetune``, ``model``, ``runtime`` and ``tracking`` are used.
        prepared: folder that the prepare stage wrote.
        best_plan: file that the search stage wrote.
        files: to write.

    Raises:
        ValueError, OSError: before any training, for inputs that cannot be used.
        FinetuningFailedError, LostWorkerError, FreezeProofError: as they say.
    """
    shop = Workshop.check(params, params.finetune, prepared)
    plans = read_plans(best_plan, tuple(shop.backbone.blocks))
    check_writable(files.model, files.baseline, files.seeds, files.curves, files.metrics)
    _check_replaceable(files.seeds)
    say_other_precision(best_plan, shop.compute)
    with (
        scratch_beside(files.seeds, alone=True) as scratch,
        shop.open("finetune") as (runs, tracked),
    ):
        trained = scratch / "trained"
        trained.mkdir()
        planned = _planned(plans, params, trained)
        kept = shop.home / "finetune"
        jobs = [
            Job(task, weights, kept / f"{runs.key(task)}.progress")
            for task, weights in planned.items()
        ]
        curves = _train(jobs, runs)
        winner, recipe = _sorted_by_plan(plans, planned, curves)
        _keep(winner, files.model, shop)
        _keep(recipe, files.baseline, shop)
        put_folder(trained, files.seeds, scratch / "old")
        both = {"winner": winner, "best_recipe": recipe}
        _write_curves(files.curves, both)
        metrics = _metrics(both)
        write_json(files.metrics, metrics)
        for role, finetuned in both.items():
            for seed in finetuned.curves:
                tracked.child(_tracked(role, finetuned, seed))
        tracked.metrics(metrics)
        for job in jobs:
            _forget(job)
    _print_summary(both)
    return winner


def _check_replaceable(seeds: Path) -> None:
    if seeds.exists() and not (
        seeds.is_dir() and all(file.suffix == ".safetensors" for file in seeds.iterdir())
    ):
        raise FileExistsError(
            f"{seeds} exists and holds something else than weights: choose another folder, or move "
            "it away"
        )


def _planned(
    plans: Mapping[str, tuple[str, FineTunePlan]], params: Params, folder: Path
) -> dict[TrainingTask, Path]:
    """Every run, with the file of its best epoch's tensors."""
    settings = training_settings(params.finetune)
    planned: dict[TrainingTask, Path] = {}
    for role, (_, plan) in plans.items():
        for seed in params.finetune.training_seeds:  # a recipe that won is trained once: the winner
            planned.setdefault(TrainingTask(plan, seed, settings), seed_file(folder, role, seed))
    return planned


def _train(jobs: Sequence[Job], runs: TrainingRuns) -> dict[TrainingTask, LearningCurve]:
    """All runs side by side; each leaves its best epoch's tensors in its file."""
    curves: dict[TrainingTask, LearningCurve] = {}
    by_task = {job.task: job for job in jobs}
    for run in tqdm(runs.train(jobs), total=len(jobs), desc="finetune", unit="run"):
        task = run.task
        if run.curve.outcome != "finished":
            _forget(by_task[task])  # nothing can go on from there
            raise FinetuningFailedError(
                f"training seed {task.seed} of {task.plan} ended as {run.curve.outcome}; try a "
                "smaller finetune.base_lr or finetune.batch_size"
            )
        curves[task] = run.curve
    return curves


def _forget(job: Job) -> None:
    """Remove how far a run had come."""
    if job.progress_file is not None:
        job.progress_file.unlink(missing_ok=True)


def _sorted_by_plan(
    plans: Mapping[str, tuple[str, FineTunePlan]],
    planned: Mapping[TrainingTask, Path],
    curves: Mapping[TrainingTask, LearningCurve],
) -> list[Finetuned]:
    return [
        Finetuned(
            name,
            plan,
            {task.seed: curves[task] for task in planned if task.plan == plan},
            {task.seed: file for task, file in planned.items() if task.plan == plan},
        )
        for name, plan in plans.values()
    ]


def _keep(finetuned: Finetuned, weights: Path, shop: Workshop) -> None:
    """Write a plan's best run where it will be read."""
    images, backbone = shop.images, shop.backbone
    card = ModelCard(
        backbone=backbone.name,
        classes=images.classes,
        plan=finetuned.plan,
        name=finetuned.name,
        image_size=images.image_size,
        mean=backbone.mean,
        std=backbone.std,
        validation_score=finetuned.best_score,
        precision=shop.compute.precision,
    )
    with written_beside(weights) as beside:
        shutil.copyfile(finetuned.weights[finetuned.best_seed], beside)
    write_json(weights.with_suffix(".json"), card.to_json())


def _validation_rank(curve: LearningCurve) -> tuple[float, float]:
    best = curve.best_epoch
    return -curve.validation_score[best], curve.validation_brier[best]


def _write_curves(path: Path, both: Mapping[str, Finetuned]) -> None:
    rows = [
        {
            "plan": role,
            "seed": seed,
            "epoch": epoch,
            "train_loss": curve.train_loss[epoch],
            "validation_score": curve.validation_score[epoch],
            "validation_brier": curve.validation_brier[epoch],
        }
        for role, finetuned in both.items()
        for seed, curve in finetuned.curves.items()
        for epoch in range(len(curve.train_loss))
    ]
    write_csv(path, rows, list(rows[0]))


def _metrics(both: Mapping[str, Finetuned]) -> dict[str, Any]:
    return {
        role: {
            "validation_score": finetuned.best_score,
            "validation_score_mean": float(np.mean(finetuned.scores)),
            # Of the sample: what another seed would differ by. Of one seed no spread is known.
            "validation_score_sd": float(np.std(finetuned.scores, ddof=1))
            if len(finetuned.scores) > 1
            else None,
        }
        for role, finetuned in both.items()
    }


def _tracked(role: str, finetuned: Finetuned, seed: int) -> TrackedRun:
    curve = finetuned.curves[seed]
    return TrackedRun(
        name=f"{role} seed {seed}",
        params={"plan": str(finetuned.plan), "seed": str(seed), "name": finetuned.name},
        metrics={"validation_score": max(curve.validation_score), "seconds": curve.seconds},
        curves={
            "train_loss": curve.train_loss,
            "validation_score": curve.validation_score,
            "validation_brier": curve.validation_brier,
        },
        tags={"biotune.kind": "finetune", "biotune.kept": str(seed == finetuned.best_seed).lower()},
        seconds=curve.seconds,
    )


def _print_summary(both: Mapping[str, Finetuned]) -> None:
    rows = [
        (
            f"{role.replace('_', ' ')}: {finetuned.name}",
            percent(finetuned.best_score, 2),
            " ".join(percent(score) for score in finetuned.scores),
        )
        for role, finetuned in both.items()
    ]
    print_table("Final fine-tuning", ["plan", "validation score, kept", "each seed"], rows)
