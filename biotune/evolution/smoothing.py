"""Scores that carry the evidence of similar plans: what a lucky run looks like without its luck.

A Gaussian process through all scores of a fold, with noise. Its hyperparameters are those of the
largest marginal likelihood on a small grid, so that scores which turn out to be exact stay nearly
as they are. Formulas: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from biotune.evolution.candidate import Candidate
    from biotune.plan import FineTunePlan

FEWEST_PLANS = 5
"""With fewer, there is nothing to learn a scale from, and every score stays as it is."""

# In units of `plan_distances`; two random plans are about 1 apart.
_LENGTH_SCALES = (0.7, 1.4, 2.8)
# The noise's variance in units of the signal's.
_NOISE_RATIOS = (1e-6, 1e-3, 0.01, 0.1, 0.4)
# Smoothed scores are rounded to this share of the scores' standard deviation, so that the last
# bits, in which linear algebra differs between machines, decide nothing.
_RESOLUTION = 1e-6


def smoothed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each with the fitness that it and similar plans on its fold suggest.

    A plan that was scored more than once counts once, by its mean: the scores may be one training
    run, looked up again. Runs that failed or were stopped are no scores: they stay as they are
    and say nothing of the others.

    Args:
        candidates: told.
    """
    scores: dict[int, dict[FineTunePlan, list[float]]] = {}
    for one in candidates:
        if one.finished:
            scores.setdefault(one.fold, {}).setdefault(one.plan, []).append(one.fitness)
    fitness: dict[tuple[int, FineTunePlan], float] = {}
    for fold, of_plans in scores.items():
        means = np.array([np.mean(own) for own in of_plans.values()])
        for plan, mean in zip(of_plans, posterior_means(list(of_plans), means), strict=True):
            fitness[fold, plan] = float(mean)
    return [
        one.with_fitness(fitness[one.fold, one.plan]) if one.finished else one for one in candidates
    ]


def posterior_means(
    plans: Sequence[FineTunePlan], fitness: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The posterior mean of a Gaussian process at the plans that it was fitted to.

    A constant mean, a Matérn kernel with ν = 3/2 (equation 4.17 of the book), the amplitude in
    closed form, length scale and noise by the marginal likelihood (5.8).

    Args:
        plans: n different plans of the same blocks.
        fitness: shape [n], finite.

    Returns:
        shape [n]: the fitness itself for fewer than :data:`FEWEST_PLANS` plans or equal scores.
    """
    spread = fitness.std() if fitness.size else 0.0
    if fitness.size < FEWEST_PLANS or spread == 0:
        return fitness
    centre = fitness.mean()
    standardised = (fitness - centre) / spread
    distances = plan_distances(plans)
    best, means = -np.inf, standardised
    for length_scale in _LENGTH_SCALES:
        scaled = np.sqrt(3) * distances / length_scale
        kernel = (1 + scaled) * np.exp(-scaled)
        for noise in _NOISE_RATIOS:
            covariance = kernel + noise * np.eye(fitness.size)
            weights = np.linalg.solve(covariance, standardised)
            # Up to a constant, where the amplitude is its best, standardised · weights / n.
            log_determinant = 2 * np.log(np.diag(np.linalg.cholesky(covariance))).sum()
            likelihood = -log_determinant - fitness.size * np.log(standardised @ weights)
            if likelihood > best:
                best, means = likelihood, kernel @ weights
    rounded: NDArray[np.float64] = centre + spread * _RESOLUTION * np.round(means / _RESOLUTION)
    return rounded


def plan_distances(plans: Sequence[FineTunePlan]) -> NDArray[np.float64]:
    """How different plans are, shape [n, n].

    Root mean square over the blocks, where a block that one plan trains and the other freezes
    counts 1 + log₁₀(m)², and one that both train the squared difference of their log₁₀ m.
    """
    trained = np.array([[m is not None for m in plan.values()] for plan in plans], dtype=float)
    rates = np.array([[0.0 if m is None else np.log10(m) for m in plan.values()] for plan in plans])
    features = np.concatenate([trained, rates], axis=1)
    squares = ((features[:, np.newaxis] - features[np.newaxis]) ** 2).sum(axis=-1)
    distances: NDArray[np.float64] = np.sqrt(squares / trained.shape[1])
    return distances
