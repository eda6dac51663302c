"""A landscape to be searched: what every plan comes to in truth, and what a run would show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.landscapes.forest import Array, log_rates
from benchmarks.landscapes.noise import SHARES, Deviations, Noise
from benchmarks.landscapes.surrogate import (
    Prediction,
    Recorded,
    Surrogate,
    score_of,
)
from biotune.evolution.genome import decode, encode
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.plan import FineTunePlan

IMAGES = 300
"""Validation images, about equally many of each class: scores are multiples of one over these."""

_DRAWS = 64
"""Deviations over which a plan's mean validation score is taken."""


class SimulatedLandscape:
    """A recording, and the model of all plans that is made of it.

    Args:
        file: of the recording.

    Attributes:
        name: of the file.
        blocks: of the network in forward order, the head last.
        settings: with which every run is trained, but for the patience.

    Raises:
        ValueError: if the file is no recording of finished runs on one schedule.
    """

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        self.recorded = Recorded.read(file)
        self.blocks, self.settings = self.recorded.blocks, self.recorded.settings
        self._surrogate = Surrogate.fit(self.recorded)
        self._noise = Noise.estimate(self.recorded)
        self._predicted: dict[FineTunePlan, Prediction] = {}
        self._parameters = self._of_blocks()
        draws = np.random.default_rng(0).standard_normal((_DRAWS, self.settings.epochs))
        self._draws = np.sqrt(sum(SHARES.values())) * draws @ self._noise.epochs.T

    def truth(self, plan: FineTunePlan) -> float:
        """A plan's mean score on the test images, trained to its end, the best epoch by
        validation."""
        return float(self._predict(plan).test[0])

    def validation(self, plan: FineTunePlan) -> float:
        """A plan's mean validation score, of the best epoch, over seeds and divisions."""
        odds = self._predict(plan).odds[0]
        scale = np.exp(self._noise.log_scale(odds[-1:]) + self._noise.scatter**2 / 2)
        return float(score_of(odds + scale * self._draws).max(axis=1).mean())

    @cached_property
    def best_plan(self) -> FineTunePlan:
        """The best plan by :meth:`truth` of those recorded, and of a search for better ones."""
        return _climb(self._surrogate, list(self.recorded.runs), self.blocks)

    @cached_property
    def best_truth(self) -> float:
        """:meth:`truth` of :attr:`best_plan`."""
        return self.truth(self.best_plan)

    def deviations(self, replicate: int) -> Deviations:
        """All deviations from the mean of one replicate: other images, other training seeds."""
        return Deviations(self._noise, self._surrogate.quality, replicate)

    def curve(self, task: TrainingTask, deviations: Deviations) -> LearningCurve:
        """What a task's training shows.

        Raises:
            ValueError: for a task that this landscape says nothing of.
        """
        self._check(task)
        expected = self._predict(task.plan)
        odds = expected.odds[0]
        deviation = deviations.of_run(log_rates(task.plan), odds, task.seed, task.division)
        scores = np.round(score_of(odds + deviation) * IMAGES) / IMAGES
        briers = expected.brier[0] * np.exp(self._noise.brier * deviation)
        epochs = _patient(scores, task.settings.patience)
        trained = [rate is not None for rate in task.plan.values()]
        whole = LearningCurve(
            train_loss=(np.nan,) * epochs,  # nobody asks for it
            validation_score=tuple(scores[:epochs].tolist()),
            validation_brier=tuple(briers[:epochs].tolist()),
            trained_parameters=int(self._parameters[trained].sum()),
            outcome="finished",
            seconds=float(expected.seconds[0]) * epochs / self.settings.epochs,
        )
        return whole.raced(task.must_reach)

    def _predict(self, plan: FineTunePlan) -> Prediction:
        if plan not in self._predicted:
            self._predicted[plan] = self._surrogate.predict([plan])
        return self._predicted[plan]

    def _check(self, task: TrainingTask) -> None:
        patience = self.settings.patience
        if replace(task.settings, patience=patience) != self.settings:
            raise ValueError(f"{self.name} was recorded with {self.settings}, got {task.settings}")
        if task.division.folds > 1:
            raise ValueError(f"{self.name} was recorded on whole splits, got {task.division}")
        if tuple(task.plan) != self.blocks:
            raise ValueError(f"{self.name} has the blocks {self.blocks}, got {task.plan}")
        if not task.plan.trained_blocks:
            raise ValueError(f"the plan trains no block, there is nothing to fit: {task.plan}")

    def _of_blocks(self) -> Array:
        """Parameters of each block, [B], from what the recorded plans train."""
        plans = list(self.recorded.runs)
        masks = np.array([[rate is not None for rate in plan.values()] for plan in plans])
        totals = [runs[0].curve.trained_parameters for runs in self.recorded.runs.values()]
        solved = np.linalg.lstsq(masks.astype(np.float64), np.array(totals, np.float64))[0]
        return np.round(solved)


def _patient(scores: Array, patience: int) -> int:
    """After how many epochs a run ends by itself."""
    best = 0
    for epoch, score in enumerate(scores):
        if score > scores[best]:
            best = epoch
        if epoch - best >= patience:
            return epoch + 1
    return len(scores)


def _climb(
    surrogate: Surrogate,
    recorded: Sequence[FineTunePlan],
    blocks: Sequence[str],
    starts: int = 10,
    children: int = 100,
    rounds: int = 40,
) -> FineTunePlan:
    """The best plan by test score: recorded and random ones, then small changes of the best."""
    rng = np.random.default_rng(0)
    importances, thresholds = rng.random((5000, len(blocks))), rng.random((5000, 1))
    random = np.where(importances > thresholds, 2 * importances - 1, np.nan)
    rates = np.concatenate([[log_rates(plan) for plan in recorded], random])
    rates = rates[~np.isnan(rates).all(axis=1)]
    for _ in range(rounds):
        best = rates[np.argsort(-surrogate.predict_rates(rates).test, kind="stable")[:starts]]
        tried = np.repeat(best, children, axis=0) + rng.normal(0, 0.3, (starts * children, 1))
        tried = np.where(rng.random(tried.shape) < 0.5, tried, np.repeat(best, children, axis=0))
        flipped = rng.random(tried.shape) < 1.0 / len(blocks)
        fresh = np.where(np.isnan(tried), rng.uniform(-1, 1, tried.shape), np.nan)
        tried = np.clip(np.where(flipped, fresh, tried), -1, 1)
        rates = np.concatenate([best, tried[~np.isnan(tried).all(axis=1)]])
    best = rates[np.argmax(surrogate.predict_rates(rates).test)]
    multipliers = {i: 10**rate for i, rate in enumerate(best.tolist()) if not np.isnan(rate)}
    return decode(encode(multipliers, len(blocks)), blocks)
