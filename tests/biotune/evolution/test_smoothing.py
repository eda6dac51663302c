"""Smoothed scores: what they take from similar plans, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biotune.evolution.candidate import Candidate
from biotune.evolution.genome import Genome, decode
from biotune.evolution.smoothing import FEWEST_PLANS, plan_distances, posterior_means, smoothed
from biotune.plan import Evaluation, FineTunePlan

BLOCKS = [f"block{i}" for i in range(6)]
seeds = st.integers(min_value=0, max_value=10_000)


def random_genomes(seed: int, count: int) -> list[Genome]:
    rng = np.random.default_rng(seed)
    return [Genome.random_viable(rng, len(BLOCKS)) for _ in range(count)]


def random_plans(seed: int, count: int = 30) -> list[FineTunePlan]:
    return [decode(genome, BLOCKS) for genome in random_genomes(seed, count)]


def middle_is_best(plan: FineTunePlan) -> float:
    """Rises with the distance from training the two middle blocks at 3x."""
    ideal = FineTunePlan({b: 3.0 if b in ("block2", "block3") else None for b in BLOCKS})
    return float(plan_distances([plan, ideal])[0, 1] ** 2) / 3


def candidates(seed: int, evaluations: list[Evaluation], fold: int = 0) -> list[Candidate]:
    return [
        Candidate(number, genome, decode(genome, BLOCKS), "random", (), 0, fold, evaluation)
        for number, (genome, evaluation) in enumerate(
            zip(random_genomes(seed, len(evaluations)), evaluations, strict=True)
        )
    ]


def fitnesses(told: list[Candidate]) -> list[float]:
    return [one.fitness for one in smoothed(told)]


def noisy_evaluations(seed: int, count: int) -> list[Evaluation]:
    scores = np.random.default_rng(seed).random(count)
    return [Evaluation(float(score)) for score in scores]


def test_distances_are_those_worked_out_by_hand() -> None:
    plans = [
        FineTunePlan({"a": 1.0, "b": None}),
        FineTunePlan({"a": 10.0, "b": None}),
        FineTunePlan({"a": None, "b": 0.1}),
    ]
    # (1² + 0)/2; (1 + 0² of a, 1 + 1² of b)/2; (1 + 1² of a, 1 + 1² of b)/2
    expected = [[0, 0.5, 1.5], [0.5, 0, 2.0], [1.5, 2.0, 0]]
    assert plan_distances(plans) ** 2 == pytest.approx(np.array(expected))


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_exact_scores_of_many_plans_stay_nearly_as_they_are(seed: int) -> None:
    """Of many: the scores of thirty plans are now and then as likely with noise as without."""
    plans = random_plans(seed, 60)
    exact = np.array([middle_is_best(plan) for plan in plans])
    assert posterior_means(plans, exact) == pytest.approx(exact, abs=0.1 * exact.std())


def test_noise_is_mostly_taken_away() -> None:
    before, after = [], []
    for seed in range(20):
        plans = random_plans(seed, 60)
        truth = np.array([middle_is_best(plan) for plan in plans])
        scores = truth + 0.5 * truth.std() * np.random.default_rng(seed).standard_normal(60)
        before.append(np.mean((scores - truth) ** 2))
        after.append(np.mean((posterior_means(plans, scores) - truth) ** 2))
    assert np.mean(after) < 0.7 * np.mean(before)


def test_a_lucky_score_among_near_copies_does_not_stand_out() -> None:
    rates = np.linspace(2.0, 2.9, 10)
    near = [FineTunePlan({"a": float(rate), "b": None, "c": None}) for rate in rates]
    far = [FineTunePlan({"a": None, "b": float(rate), "c": 1.0}) for rate in rates]
    rng = np.random.default_rng(0)
    scores = np.concatenate([np.full(10, 0.2), np.full(10, 0.4)]) + 0.01 * rng.standard_normal(20)
    scores[4] = 0.15
    means = posterior_means(near + far, scores)
    assert means[:10] == pytest.approx(0.2, abs=0.02)
    assert means[10:] == pytest.approx(0.4, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    scale=st.floats(min_value=0.01, max_value=100),
    shift=st.floats(min_value=-10, max_value=10),
)
def test_the_scale_of_the_fitness_does_not_matter(seed: int, scale: float, shift: float) -> None:
    plans = random_plans(seed, 12)
    scores = np.random.default_rng(seed).random(12)
    scaled = posterior_means(plans, scale * scores + shift)
    expected = scale * posterior_means(plans, scores) + shift
    assert scaled == pytest.approx(expected, abs=1e-4 * scale)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_the_order_of_the_plans_does_not_matter(seed: int) -> None:
    told = candidates(seed, noisy_evaluations(seed, 12))
    turned = smoothed(told[::-1])[::-1]
    assert [one.fitness for one in turned] == pytest.approx(fitnesses(told), abs=1e-5)


@pytest.mark.parametrize("count", range(FEWEST_PLANS))
def test_a_few_scores_stay_as_they_are(count: int) -> None:
    told = candidates(0, noisy_evaluations(0, count))
    assert smoothed(told) == told


def test_equal_scores_stay_as_they_are() -> None:
    told = candidates(0, [Evaluation(0.25)] * 9)
    assert smoothed(told) == told


def test_a_plan_that_was_scored_twice_counts_once_by_its_mean() -> None:
    told = candidates(3, noisy_evaluations(3, 9))
    twice = [
        *told[:-1],
        told[-1].with_fitness(told[-1].fitness - 0.1),
        told[-1].with_fitness(told[-1].fitness + 0.1),
    ]
    assert fitnesses(twice)[:9] == pytest.approx(fitnesses(told), abs=1e-5)
    assert fitnesses(twice)[9] == fitnesses(twice)[8]


@pytest.mark.parametrize("outcome", ["diverged", "infeasible", "stopped"])
def test_failed_and_stopped_runs_stay_and_say_nothing(outcome: str) -> None:
    finished = noisy_evaluations(4, 9)
    failed = Evaluation(0.0, outcome=outcome)
    judged = smoothed(candidates(4, [*finished, failed]))
    assert judged[-1].evaluation == failed
    assert [one.fitness for one in judged[:-1]] == fitnesses(candidates(4, finished))


def test_folds_say_nothing_of_each_other() -> None:
    one = candidates(5, noisy_evaluations(5, 9))
    other = candidates(6, noisy_evaluations(6, 9), fold=1)
    assert fitnesses(one + other) == fitnesses(one) + fitnesses(other)


def test_only_the_fitness_is_smoothed() -> None:
    told = candidates(7, [Evaluation(i / 10, 0.5, i, "finished") for i in range(9)])
    for before, after in zip(told, smoothed(told), strict=True):
        assert after.with_fitness(before.fitness) == before
