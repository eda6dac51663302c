"""Each figure of the evaluate stage is of the images and of the networks that it is named for."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import save_file

from biotune.finetuning.checkpoints import ModelCard, seed_file
from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.metrics import classifier_scores, mean_interval
from biotune.finetuning.training import TrainingSettings, predict_probabilities
from biotune.images import ImageFolderSource, prepare_images
from biotune.plan import FineTunePlan
from pipeline.evaluate import EvaluatedModels, EvaluateFiles, run
from pipeline.params import Params
from tests.threads import one_thread
from tests.tiny import BLOCKS, NETWORK, PICTURES, tiny_params, write_pictures

SEEDS = (3, 4)
KEPT = {"winner": 4, "best_recipe": 3}
PLANS = {
    "winner": FineTunePlan(dict.fromkeys(BLOCKS, 3.0)),
    "best_recipe": FineTunePlan({**dict.fromkeys(BLOCKS), "classifier": 10.0}),
}


@dataclass(frozen=True)
class Evaluated:
    """What ``metrics.json`` says, and each run's answers of the test and the training images."""

    metrics: dict[str, Any]
    test: dict[tuple[str, int], NDArray[np.float32]]
    train: dict[tuple[str, int], NDArray[np.float32]]
    labels: dict[str, NDArray[np.int64]]

    def scores(self, role: str, seed: int) -> dict[str, Any]:
        return classifier_scores(self.test[role, seed], self.labels["test"])

    def right(self, role: str) -> NDArray[np.float64]:
        """1 for each test image that the kept model classifies right."""
        answers = self.test[role, KEPT[role]].argmax(axis=1)
        return (answers == self.labels["test"]).astype(np.float64)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Two runs of each plan, trained for a few epochs as the finetune stage does it."""
    folder = tmp_path_factory.mktemp("evaluated")
    source = ImageFolderSource(write_pictures(folder / "data"), "white")
    prepared = folder / "prepared"
    images = prepare_images(
        source, prepared, image_size=32, train_images=40, validation_images=40, seed=0
    )
    trainer = Trainer(prepared, NETWORK, "none", Compute())
    answers: dict[str, dict[tuple[str, int], NDArray[np.float32]]] = {"test": {}, "train": {}}
    for role, plan in PLANS.items():
        for seed in SEEDS:
            task = TrainingTask(plan, seed, TrainingSettings(3, 3, 8, 0.003))
            with one_thread():
                state = trainer.train(task, keep_best=True).best_state
                assert state is not None
                trainer.backbone.network.load_state_dict(state)
                for split, said in answers.items():
                    subset = trainer.subset(split)
                    said[role, seed] = predict_probabilities(trainer.backbone, subset)
            file = seed_file(folder / "seeds", role, seed)
            file.parent.mkdir(exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        card = ModelCard(
            backbone=NETWORK,
            classes=images.classes,
            plan=plan,
            name=role,
            image_size=32,
            mean=trainer.backbone.mean,
            std=trainer.backbone.std,
            validation_score=0.5,
            precision="fp32",
        )
        (folder / f"{role}.json").write_text(json.dumps(card.to_json()))
        shutil.copyfile(
            seed_file(folder / "seeds", role, KEPT[role]), folder / f"{role}.safetensors"
        )
    params = tiny_params(**PICTURES, finetune__training_seeds=list(SEEDS))
    models = EvaluatedModels(
        winner=folder / "winner.safetensors",
        baseline=folder / "best_recipe.safetensors",
        seeds=folder / "seeds",
    )
    files = EvaluateFiles(
        metrics=folder / "metrics.json",
        predictions=folder / "predictions.csv",
        confusion=folder / "confusion.csv",
        classes=folder / "classes.csv",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOTUNE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        metrics = run(Params.model_validate(params), prepared=prepared, models=models, files=files)
    labels = {split: images.labels[images.indices(split)] for split in answers}
    return Evaluated(metrics, answers["test"], answers["train"], labels)


@pytest.mark.parametrize("role", PLANS)
def test_the_calibration_error_is_that_of_the_test_images(evaluated: Evaluated, role: str) -> None:
    figures = evaluated.metrics if role == "winner" else evaluated.metrics["best_recipe"]
    kept = (role, KEPT[role])
    learned = classifier_scores(evaluated.train[kept], evaluated.labels["train"])
    error = evaluated.scores(*kept)["expected_calibration_error"]
    assert figures["expected_calibration_error"] == pytest.approx(error, abs=1e-4)
    assert abs(error - learned["expected_calibration_error"]) > 0.01


def test_the_runs_of_a_plan_are_its_own(evaluated: Evaluated) -> None:
    accuracies = {
        role: [evaluated.scores(role, seed)["accuracy"] for seed in SEEDS] for role in PLANS
    }
    assert abs(np.mean(accuracies["winner"]) - np.mean(accuracies["best_recipe"])) > 0.01
    for role, values in accuracies.items():
        figures = evaluated.metrics if role == "winner" else evaluated.metrics["best_recipe"]
        assert figures["accuracy"] == pytest.approx(values[SEEDS.index(KEPT[role])])
        assert figures["over_seeds"]["accuracy_mean"] == pytest.approx(np.mean(values))
        assert figures["over_seeds"]["accuracy_sd"] == pytest.approx(np.std(values, ddof=1))


def test_the_gain_is_of_the_differences_image_by_image(evaluated: Evaluated) -> None:
    winner, recipe = evaluated.right("winner"), evaluated.right("best_recipe")
    gain = evaluated.metrics["gain_over_best_recipe"]
    assert gain["accuracy"] == pytest.approx(np.mean(winner - recipe))
    paired = mean_interval(winner - recipe)
    unpaired = mean_interval(winner[::-1] - recipe)
    assert gain["interval_95"] == pytest.approx(paired)
    assert paired != pytest.approx(unpaired)
