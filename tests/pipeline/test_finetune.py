"""The finetune stage trains as its params say, and keeps the run that validated best."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from biotune.finetuning.checkpoints import seed_file
from biotune.finetuning.fitness import TrainingTask
from biotune.images import ImageFolderSource, prepare_images
from pipeline.finetune import Finetuned, FinetuneFiles, run
from pipeline.params import Params
from pipeline.trials.jobs import Job, Outcome
from tests.pipeline.trainings import FakeWorkers, curve
from tests.tiny import BLOCKS, PICTURES, tiny_params, write_pictures

CURVES = {
    "winner": {3: curve(0.5), 4: curve(0.9), 5: curve(0.7)},
    # The last two validate alike, and the last has the lower Brier score.
    "best_recipe": {
        3: curve(0.4),
        4: replace(curve(0.8), validation_brier=(1.0, 0.3)),
        5: curve(0.8),
    },
}
BEST = {"winner": 4, "best_recipe": 5}
SETTINGS = {
    "epochs": 7,
    "patience": 2,
    "batch_size": 8,
    "base_lr": 0.003,
    "metric": "f1_macro",
    "class_weights": "balanced",
    "label_smoothing": 0.1,
    "augment": "flip",
}


def trained(job: Job) -> list[Outcome]:
    task = job.task
    role = "best_recipe" if task.plan["stem"] else "winner"
    assert job.weights_file is not None
    save_file({"seed": torch.tensor([task.seed])}, job.weights_file)
    return [Outcome(task, curve=CURVES[role][task.seed])]


@pytest.fixture(scope="module")
def tasks_and_folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[TrainingTask], Path]:
    folder = tmp_path_factory.mktemp("finetuned")
    source = ImageFolderSource(write_pictures(folder / "data"), "white")
    prepared = folder / "prepared"
    prepare_images(source, prepared, image_size=32, train_images=40, validation_images=40, seed=0)
    recipe = {"name": "full 1x", "blocks": dict.fromkeys(BLOCKS, 1.0)}
    winner = {"name": "candidate 9", "blocks": {**dict.fromkeys(BLOCKS), "classifier": 1.0}}
    (folder / "plan.json").write_text(json.dumps({**winner, "best_recipe": recipe}))
    changes = {f"finetune__{name}": value for name, value in SETTINGS.items()}
    content = tiny_params(**PICTURES, **changes, finetune__training_seeds=[3, 4, 5])
    workers = FakeWorkers(trained)
    files = FinetuneFiles(
        model=folder / "winner.safetensors",
        baseline=folder / "best_recipe.safetensors",
        seeds=folder / "seeds",
        curves=folder / "curves.csv",
        metrics=folder / "metrics.json",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOTUNE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("pipeline.workshop.WorkerPool", lambda *_: workers)
        run(
            Params.model_validate(content),
            prepared=prepared,
            best_plan=folder / "plan.json",
            files=files,
        )
    return [job.task for job in workers.done], folder


def test_each_setting_reaches_each_run(
    tasks_and_folder: tuple[list[TrainingTask], Path],
) -> None:
    tasks, _ = tasks_and_folder
    assert len(tasks) == 6
    for task in tasks:
        assert asdict(task.settings) == SETTINGS


@pytest.mark.parametrize("role", CURVES)
def test_the_kept_model_is_the_run_that_validated_best(
    tasks_and_folder: tuple[list[TrainingTask], Path], role: str
) -> None:
    _, folder = tasks_and_folder
    for seed in CURVES[role]:
        assert load_file(seed_file(folder / "seeds", role, seed))["seed"].item() == seed
    assert load_file(folder / f"{role}.safetensors")["seed"].item() == BEST[role]
    card = json.loads((folder / f"{role}.json").read_text())
    best = max(CURVES[role][BEST[role]].validation_score)
    assert card["validation_score"] == best
    figures = json.loads((folder / "metrics.json").read_text())[role]
    assert figures["validation_score"] == best


@pytest.mark.parametrize("role", CURVES)
def test_the_best_seed_is_by_score_and_then_by_brier_in_any_order(role: str) -> None:
    curves = CURVES[role]
    for seeds in (list(curves), list(reversed(curves))):
        ordered = {seed: curves[seed] for seed in seeds}
        assert Finetuned("x", None, ordered, {}).best_seed == BEST[role]  # type: ignore[arg-type]
