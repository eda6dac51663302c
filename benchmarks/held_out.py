"""What a plan is worth on images that no choice was made by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.metrics import validation_scores
from biotune.finetuning.training import FitResult, TrainingSettings, predict_probabilities
from biotune.plan import FineTunePlan

TEST_SEEDS = range(100, 105)
"""Training seeds that no search uses."""


class HeldOutScores(NamedTuple):
    """Of one run's best epoch by validation, on the test split; each in [0, 1]."""

    balanced_accuracy: float
    accuracy: float


def scores_on_test(result: FitResult, trainer: Trainer) -> HeldOutScores | None:
    """Test a run just trained with ``keep_best``; None if it came to no weights."""
    if result.best_state is None:
        return None
    trainer.backbone.network.load_state_dict(result.best_state)
    test = trainer.subset("test")
    probabilities = predict_probabilities(trainer.backbone, test, trainer.compute)
    labels = test.labels[test.indices]
    balanced, _ = validation_scores(probabilities, labels)
    return HeldOutScores(balanced, float((probabilities.argmax(axis=1) == labels).mean()))


def train_and_test(task: TrainingTask, trainer: Trainer) -> HeldOutScores:
    """Train as a task says, and test its best epoch.

    Raises:
        ValueError: if the run came to no weights.
    """
    result = trainer.train(task, keep_best=True)
    scores = scores_on_test(result, trainer)
    if scores is None:
        raise ValueError(f"seed {task.seed} of {task.plan} ended as {result.curve.outcome}")
    return scores


def held_out_accuracy(plan: FineTunePlan, trainer: Trainer, settings: TrainingSettings) -> float:
    """Test accuracy in [0, 1], mean over fresh seeds; of each run's best epoch by validation."""
    tasks = [TrainingTask(plan, seed, settings) for seed in TEST_SEEDS]
    return float(np.mean([train_and_test(task, trainer).accuracy for task in tasks]))
