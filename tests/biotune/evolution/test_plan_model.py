"""What a search expects of plans, against the textbook's formulas written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from biotune.evolution.plan_model import (
    FROZEN_SCALES,
    NOISE_SHARES,
    RATE_SCALES,
    PlanModel,
    expected_gain,
)
from biotune.plan import FineTunePlan

Rates = tuple[float | None, ...]

UNSEEN: list[Rates] = [(None, 2.0, None), (0.1, 10.0, 1.0), (1.0, 1.0, 1.0), (None, None, 5.0)]


def plans(rates: Sequence[Rates]) -> list[FineTunePlan]:
    return [FineTunePlan(dict(zip("abc", of_plan, strict=False))) for of_plan in rates]


def covariance(first: Rates, second: Rates, scales: tuple[float, float]) -> float:
    """Of two plans with variance 1, as the model's module says it."""
    masks = sum((a is None) != (b is None) for a, b in zip(first, second, strict=True))
    logs = [[0.0 if rate is None else math.log10(rate) for rate in of] for of in (first, second)]
    rates = sum((a - b) ** 2 for a, b in zip(*logs, strict=True))
    return math.exp(-masks / (2 * scales[0] ** 2)) * math.exp(-rates / (2 * scales[1] ** 2))


def clipped(fitness: Sequence[float], folds: Sequence[int]) -> np.ndarray:
    """Scores no further above their fold's median than the best of all is below its fold's."""
    scored = list(zip(fitness, folds, strict=True))
    median = {fold: np.median([s for s, other in scored if other == fold]) for fold in folds}
    reach = max(median[fold] - score for score, fold in scored)
    return np.array([min(score, median[fold] + reach) for score, fold in scored])


class Textbook:
    """A Gaussian process with these hyperparameters; level and variance of largest likelihood."""

    def __init__(
        self,
        rates: Sequence[Rates],
        fitness: Sequence[float],
        folds: Sequence[int],
        scales: tuple[float, float],
        noise_share: float,
    ) -> None:
        self.rates, self.scales = rates, scales
        scores = clipped(fitness, folds)
        kernel = np.array([[covariance(a, b, scales) for a in rates] for b in rates])
        self.noisy = kernel + (noise_share + 1e-8) * np.eye(len(rates))
        design = np.array([[float(fold == f) for f in sorted(set(folds))] for fold in folds])
        weighed = design.T @ np.linalg.inv(self.noisy)
        levels = np.linalg.inv(weighed @ design) @ weighed @ scores
        self.deviations = scores - design @ levels
        quadratic = self.deviations @ np.linalg.solve(self.noisy, self.deviations)
        self.level, self.variance = levels.mean(), quadratic / len(scores)
        log_determinant = np.linalg.slogdet(self.variance * self.noisy).logabsdet
        self.log_likelihood = -(log_determinant + quadratic / self.variance) / 2

    def predict(self, rates: Sequence[Rates]) -> tuple[np.ndarray, np.ndarray]:
        cross = np.array([[covariance(a, b, self.scales) for b in self.rates] for a in rates])
        mean = self.level + cross @ np.linalg.solve(self.noisy, self.deviations)
        explained = np.diag(cross @ np.linalg.solve(self.noisy, cross.T))
        return mean, np.sqrt(self.variance * (1 - explained))


def noisy_scores(seed: int) -> tuple[list[Rates], list[float], list[int]]:
    """Of twelve random plans of three blocks, by one block's rate and whether another is frozen."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(-1, 1, (12, 3)), rng.random((12, 3)) < 0.4
    rates = [
        tuple(None if frozen else 10.0**rate for rate, frozen in zip(*of_plan, strict=True))
        for of_plan in zip(*drawn, strict=True)
    ]
    fitness = [
        0.3 * (c is None) + 0.1 * (a is None) + (0 if b is None else 0.1 * math.log10(b) ** 2)
        for a, b, c in rates
    ]
    noise = rng.normal(0, [0.001, 0.05, 0.3][seed % 3], 12)
    return rates, (np.array(fitness) + noise).tolist(), rng.integers(0, 2, 12).tolist()


SCORED: dict[str, tuple[list[Rates], list[float], list[int]]] = {
    "two plans": ([(None, 1.0, 1.0), (1.0, 1.0, 1.0)], [0.3, 0.2], [0, 0]),
    "three plans": (
        [(None, None, 1.0), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0)],
        [0.5, 0.2, 0.3],
        [0, 0, 0],
    ),
    "twice": ([(None, 1.0, 1.0), (None, 1.0, 1.0), (1.0, 3.0, 1.0)], [0.3, 0.1, 0.5], [0, 0, 0]),
    "two folds": (
        [(None, 1.0, 1.0), (1.0, 1.0, 1.0), (None, 1.0, 1.0), (1.0, None, 5.0)],
        [0.3, 0.2, 0.6, 0.55],
        [0, 0, 1, 1],
    ),
    "outlier": (
        [*((None, 1.0, 10.0 ** (0.2 * i)) for i in range(6)), (None, None, 0.1)],
        [0.2, 0.21, 0.19, 0.22, 0.2, 0.23, 9.0],
        [0] * 7,
    ),
    **{f"twelve plans, seed {seed}": noisy_scores(seed) for seed in range(9)},
}


@pytest.mark.parametrize("name", SCORED)
def test_the_model_is_the_textbooks_of_largest_likelihood(name: str) -> None:
    rates, fitness, folds = SCORED[name]
    model = PlanModel.fit(plans(rates), fitness, folds)
    grid = [
        Textbook(rates, fitness, folds, scales, noise)
        for scales in product(FROZEN_SCALES, RATE_SCALES)
        for noise in NOISE_SHARES
    ]
    textbook = Textbook(rates, fitness, folds, model.scales, model.noise_share)
    largest = max(candidate.log_likelihood for candidate in grid)
    assert textbook.log_likelihood == pytest.approx(largest, abs=1e-5)
    assert model.level == pytest.approx(textbook.level)
    assert model.variance == pytest.approx(textbook.variance)
    for expected, predicted in zip(
        textbook.predict(UNSEEN + rates), model.predict(plans(UNSEEN + rates)), strict=True
    ):
        assert predicted == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_data_decide_on_the_scales_and_on_the_noise() -> None:
    models = [
        PlanModel.fit(plans(rates), fitness, folds)
        for rates, fitness, folds in map(noisy_scores, range(30))
    ]
    for hyperparameter in (
        {model.scales[0] for model in models},
        {model.scales[1] for model in models},
        {model.noise_share for model in models},
    ):
        assert len(hyperparameter) >= 2
    # Every third has noise of .001, .05 and .3, between plans that are .2 apart.
    means = [np.mean([model.noise_share for model in models[kind::3]]) for kind in range(3)]
    assert means[0] < means[1] < means[2]


def test_a_fold_that_is_harder_for_all_says_nothing_of_a_plan() -> None:
    rates, fitness, folds = noisy_scores(1)
    harder = [score + 0.2 * fold for score, fold in zip(fitness, folds, strict=True)]
    assert set(folds) == {0, 1}
    (mean, deviation), (shifted_mean, shifted_deviation) = (
        PlanModel.fit(plans(rates), scores, folds).predict(plans(UNSEEN))
        for scores in (fitness, harder)
    )
    assert shifted_mean == pytest.approx(mean + 0.1)  # half the folds' levels
    assert shifted_deviation == pytest.approx(deviation)


def test_a_hopeless_plan_is_taken_for_one_as_bad_as_the_best_is_good() -> None:
    rates, fitness, folds = SCORED["outlier"]
    limit = float(2 * np.median(fitness) - min(fitness))
    assert limit == pytest.approx(0.23)
    assert limit < 7 < fitness[-1]
    model = PlanModel.fit(plans(rates), fitness, folds)
    assert limit - 0.02 < model.predict(plans(rates[-1:]))[0][0] <= limit + 1e-6
    as_bad = PlanModel.fit(plans(rates), [*fitness[:-1], limit], folds)
    worse = PlanModel.fit(plans(rates), [*fitness[:-1], limit - 0.01], folds)
    for other, equal in ((as_bad, True), (worse, False)):
        same = model.predict(plans(UNSEEN))[0] == pytest.approx(other.predict(plans(UNSEEN))[0])
        assert same is equal


def test_of_two_folds_the_best_of_all_says_how_bad_a_plan_counts_in_either() -> None:
    """In fold 0 it is .2 below the median, in fold 1 the best is but .05 below."""
    rates: list[Rates] = [(None, 1.0, 10.0 ** (0.3 * step)) for step in range(-3, 3)]
    folds = [0, 0, 0, 1, 1, 1]
    fitness = [0.3, 0.1, 0.35, 0.6, 0.55, 0.9]
    predictions = [
        PlanModel.fit(plans(rates), [*fitness[:-1], last], folds).predict(plans(UNSEEN))[0]
        for last in (0.8, 0.9, 7.0, 0.75)
    ]
    assert predictions[1] == pytest.approx(predictions[0])
    assert predictions[2] == pytest.approx(predictions[0])
    assert predictions[3] != pytest.approx(predictions[0])


def test_a_plan_that_is_believed_leaves_what_is_expected_and_takes_the_doubt_round_it() -> None:
    rates, fitness, folds = noisy_scores(0)
    model = PlanModel.fit(plans(rates), fitness, folds)
    believing = model.believing(plans(UNSEEN)[0])
    before, after = model.predict(plans(UNSEEN)), believing.predict(plans(UNSEEN))
    assert after[0] == pytest.approx(before[0])
    assert (after[1] < before[1]).all()
    # As if the plan had been scored as expected, with the same hyperparameters.
    textbook = Textbook(
        [*rates, UNSEEN[0]], [*fitness, before[0][0]], [*folds, 0], model.scales, model.noise_share
    )
    expected = textbook.predict(UNSEEN)[1] * math.sqrt(model.variance / textbook.variance)
    assert after[1] == pytest.approx(expected, rel=1e-5)
    assert (believing.level, believing.variance) == (model.level, model.variance)
    assert model.predict(plans(UNSEEN))[1] == pytest.approx(before[1])  # stays as it is


NEIGHBOURS: list[Rates] = [(None, 1.0, 10.0 ** (0.1 * step)) for step in range(-4, 5)]
FAR_OFF: list[Rates] = [(1.0, None, 10.0 ** (0.1 * step)) for step in range(-2, 3)]


def expected_of_the_lucky(lucky_scores: Sequence[float]) -> float:
    """Of the middle one of bad neighbours (.4, give or take .02); good ones (.1) are far off."""
    scores = [
        (0.4 if plan in NEIGHBOURS else 0.1) + 0.02 * (-1) ** i
        for i, plan in enumerate(NEIGHBOURS + FAR_OFF)
    ]
    rates = NEIGHBOURS + FAR_OFF + [NEIGHBOURS[4]] * (len(lucky_scores) - 1)
    scores[4] = lucky_scores[0]
    model = PlanModel.fit(plans(rates), [*scores, *lucky_scores[1:]], [0] * len(rates))
    return float(model.predict(plans([NEIGHBOURS[4]]))[0][0])


def test_a_lucky_score_between_bad_neighbours_is_taken_for_luck_until_it_comes_again() -> None:
    once, twice, often = (expected_of_the_lucky([0.3] * times) for times in (1, 2, 6))
    assert 0.33 < once < 0.4  # nearer to its neighbours than to its score
    assert 0.3 < often < twice < once


def test_the_expected_gain_is_the_integral_over_what_a_plan_may_be() -> None:
    cases = np.array([[0.3, 0.05], [0.2, 0.1], [0.25, 0.02], [0.1, 0.01], [0.6, 0.1]])
    best = 0.25
    for (mean, deviation), gain in zip(cases, expected_gain(best, *cases.T), strict=True):
        truth = np.linspace(mean - 9 * deviation, mean + 9 * deviation, 200_001)
        density = np.exp(-(((truth - mean) / deviation) ** 2) / 2)
        density /= density.sum()
        assert gain == pytest.approx(float(np.maximum(best - truth, 0) @ density), abs=1e-7)
    certain = expected_gain(best, np.array([0.2, 0.25, 0.3]), np.zeros(3))
    assert certain == pytest.approx([0.05, 0, 0], abs=1e-7)


@pytest.mark.parametrize(
    ("rates", "fitness", "folds"),
    [
        ([(None, 1.0, 1.0)], [0.3], [0]),
        ([(1.0,)] * 2, [0.3, 0.3], [0, 1]),
        ([(None, 1.0, 1.0), (1.0, 1.0, 1.0), (None, None, 1.0)], [0.3] * 3, [0, 0, 0]),
        ([(None, 1.0, 1.0)] * 4, [0.2, 0.4, 0.2, 0.4], [0, 0, 1, 1]),
        ([(None, 1.0, 1.0)] * 40, [0.3] * 40, [0] * 40),
    ],
    ids=["one plan", "one plan on two folds", "all scores equal", "one plan, two scores", "often"],
)
def test_where_scores_say_nothing_all_plans_are_expected_to_be_equal(
    rates: list[Rates], fitness: list[float], folds: list[int]
) -> None:
    model = PlanModel.fit(plans(rates), fitness, folds)
    elsewhere = [(None,) * (len(rates[0]) - 1) + (5.0,), (10.0,) * len(rates[0])]
    mean, deviation = model.predict(plans(rates + elsewhere))
    assert mean == pytest.approx(np.full(len(mean), 0.3), abs=1e-6)
    assert np.isfinite(deviation).all()
    assert (deviation >= 0).all()
    believing = model.believing(plans(elsewhere)[0])
    assert believing.predict(plans(rates))[0] == pytest.approx(0.3, abs=1e-6)
