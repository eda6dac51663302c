"""What a search knows of plans that nobody trained: a Gaussian process on those that were.

Regression as in Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters
2.2, 2.7 and 5.4.1. The kernel is a squared exponential on which blocks a plan trains, times one on
how fast they learn. Both length scales and the share of noise are those of the largest marginal
likelihood on a grid; variance and level follow from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from biotune.plan import FineTunePlan

    Array = NDArray[np.float64]

FROZEN_SCALES: Final = (1.0, 2.0, 4.0)
"""Length scales of what is trained; plans that differ in d blocks are √d apart."""

RATE_SCALES: Final = (0.3, 0.6, 1.2, 2.4)
"""Length scales of the rates; powers of ten, Euclidean over the blocks."""

NOISE_SHARES: Final = (1e-4, 0.01, 0.05, 0.2, 0.6)
"""Variance of a score's noise, as a share of the variance between plans."""

JITTER: Final = 1e-8
"""Added to the kernel's diagonal, so that it can be inverted where plans are equal."""

DECIMALS: Final = 6
"""To which numbers are rounded before they are compared: another BLAS differs in later ones."""


@dataclass(frozen=True)
class PlanModel:
    """Predicts the fitness of plans; made by :meth:`fit`.

    Attributes:
        scales: the kernel's length scales, of what is trained and of the rates.
        noise_share: variance of a score's noise, as a share of the variance between plans.
        variance: between plans that have nothing in common.
        level: fitness of such plans; the mean over the folds.
    """

    scales: tuple[float, float]
    noise_share: float
    variance: float
    level: float
    _features: Array  # of the n plans, [n, 2, B+1]
    _deviations: Array  # of their scores from their folds' levels, [n]
    _inverse: Array  # of the kernel with noise, [n, n]

    @classmethod
    def fit(
        cls, plans: Sequence[FineTunePlan], fitness: Sequence[float], folds: Sequence[int]
    ) -> PlanModel:
        """The model by which these scores are the most likely.

        Args:
            plans: n ≥ 1 that were scored, of the same blocks; a plan may occur several times.
            fitness: of each; finite, lower is better.
            folds: what each was scored on. A fold has a level of its own, which is estimated.
        """
        in_fold = np.equal.outer(folds, np.unique(folds)).astype(np.float64)
        scores = _without_outliers(np.array(fitness, dtype=np.float64), in_fold)
        models = cls._on_grid(_features(plans), scores, in_fold)
        return max(models, key=lambda model: model[0])[1]  # of equals the first

    @classmethod
    def _on_grid(
        cls, features: Array, scores: Array, in_fold: Array
    ) -> Iterator[tuple[float, PlanModel]]:
        """Every model of the grid, each after its logarithmic marginal likelihood, rounded."""
        count = len(scores)
        for scales in product(FROZEN_SCALES, RATE_SCALES):
            # One decomposition does for every share of noise.
            values, vectors = np.linalg.eigh(_kernel(features, features, scales))
            for noise_share in NOISE_SHARES:
                spectrum = np.maximum(values, 0) + noise_share + JITTER
                inverse = (vectors / spectrum) @ vectors.T
                weighed = in_fold.T @ inverse
                levels = np.linalg.solve(weighed @ in_fold, weighed @ scores)
                deviations = scores - in_fold @ levels
                variance = max(float(deviations @ inverse @ deviations) / count, JITTER**2)
                likelihood = -(count * math.log(variance) + float(np.log(spectrum).sum())) / 2
                level = float(levels.mean())
                yield (
                    round(likelihood, DECIMALS),
                    cls(scales, noise_share, variance, level, features, deviations, inverse),
                )

    def predict(self, plans: Sequence[FineTunePlan]) -> tuple[Array, Array]:
        """The expected fitness of plans, and the standard deviation of what it may be in truth,
        without a score's noise; both of shape [plans]."""
        kernel = _kernel(_features(plans), self._features, self.scales)
        mean = self.level + kernel @ (self._inverse @ self._deviations)
        explained = ((kernel @ self._inverse) * kernel).sum(axis=1)
        return mean, np.sqrt(self.variance * np.maximum(1 - explained, 0))

    def believing(self, plan: FineTunePlan) -> PlanModel:
        """The model as if a plan had been scored, and come to what is expected of it.

        So it is less uncertain round the plan, and what is chosen next lies elsewhere ("kriging
        believer": Ginsbourger et al. 2010, doi 10.1007/978-3-642-10701-6_6).
        """
        expected = self.predict([plan])[0] - self.level
        features = np.concatenate([self._features, _features([plan])])
        kernel = _kernel(features, features, self.scales)
        kernel[np.diag_indices_from(kernel)] += self.noise_share + JITTER
        return replace(
            self,
            _features=features,
            _deviations=np.concatenate([self._deviations, expected]),
            _inverse=np.asarray(np.linalg.inv(kernel), dtype=np.float64),
        )


def expected_gain(best: float, mean: Array, deviation: Array) -> Array:
    """By how much plans are expected to be better than the best, where they are; shape [plans].

    Expected improvement (Jones et al. 1998, doi 10.1023/A:1008306431147, equation 15).

    Args:
        best: fitness to be improved on.
        mean, deviation: of the plans, as predicted.
    """
    safe = np.maximum(deviation, JITTER)
    z = (best - mean) / safe
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    gain: Array = (best - mean) * below + safe * density
    return gain


def _features(plans: Sequence[FineTunePlan]) -> Array:
    """Of each plan, which blocks it trains (0 or 1) and the logarithm of their rates to base 10, 0
    where frozen; shape [plans, 2, B+1]."""
    rates = [plan.values() for plan in plans]
    return np.array(
        [
            [
                [0.0 if rate is None else 1.0 for rate in of_plan],
                [0.0 if rate is None else math.log10(rate) for rate in of_plan],
            ]
            for of_plan in rates
        ]
    )


def _kernel(first: Array, second: Array, scales: tuple[float, float]) -> Array:
    """Shape [first, second]; 1 for equal plans."""
    distance = np.zeros((len(first), len(second)))
    for part, scale in enumerate(scales):
        a, b = first[:, part] / scale, second[:, part] / scale
        squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        distance += np.maximum(squares, 0)
    kernel: Array = np.exp(-distance / 2)
    return kernel


def _without_outliers(scores: Array, in_fold: Array) -> Array:
    """Scores, none further above the median of its fold than the best is below its fold's."""
    medians = in_fold @ [np.median(scores[fold > 0]) for fold in in_fold.T]
    deviations = scores - medians
    clipped: Array = medians + np.minimum(deviations, -deviations.min())
    return clipped
