"""What a plan is worth on images that no choice was made by."""

from __future__ import annotations

import numpy as np

from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings, predict_probabilities
from biotune.plan import FineTunePlan

TEST_SEEDS = range(100, 105)
"""Training seeds that no search uses."""


def held_out_accuracy(plan: FineTunePlan, trainer: Trainer, settings: TrainingSettings) -> float:
    """Test accuracy in [0, 1], mean over fresh seeds; of each run's best epoch by validation."""
    test = trainer.subset("test")
    labels = test.labels[test.indices]
    accuracies = []
    for seed in TEST_SEEDS:
        result = trainer.train(TrainingTask(plan, seed, settings), keep_best=True)
        if result.best_state is None:
            raise ValueError(f"seed {seed} of {plan} ended as {result.curve.outcome}")
        trainer.backbone.network.load_state_dict(result.best_state)
        probabilities = predict_probabilities(trainer.backbone, test, trainer.compute)
        accuracies.append(float((probabilities.argmax(axis=1) == labels).mean()))
    return float(np.mean(accuracies))
