"""Rank-based draws and extinction factors, against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune.evolution.selection import (
    draw_parents,
    draw_prototype,
    extinction_factors,
    rank_probabilities,
)
from biotune.plan import Evaluation

fitnesses = st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=12).map(sorted)


def finished(*scores: float) -> list[Evaluation]:
    return [Evaluation(score) for score in scores]


def test_better_ranks_are_drawn_more_often_linearly() -> None:
    assert rank_probabilities(4) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert rank_probabilities(1) == pytest.approx([1.0])
    with pytest.raises(ValueError, match="a pool of 0, expected at least 1"):
        rank_probabilities(0)


def test_parents_differ_and_follow_the_rank_probabilities() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_parents(4, rng) for _ in range(20000)]
    assert all(first != second for first, second in drawn)
    p = [0.4, 0.3, 0.2, 0.1]
    first = np.bincount([parent for parent, _ in drawn]) / len(drawn)
    assert first == pytest.approx(p, abs=0.015)
    # The second parent is drawn from the others: P(0 then 1) = .4 · .3/.6
    assert np.mean([pair == (0, 1) for pair in drawn]) == pytest.approx(0.2, abs=0.015)
    assert np.mean([pair == (3, 2) for pair in drawn]) == pytest.approx(0.1 * 0.2 / 0.9, abs=0.01)


def test_a_prototype_is_drawn_by_rank_too() -> None:
    rng = np.random.default_rng(0)
    drawn = np.bincount([draw_prototype(3, rng) for _ in range(20000)]) / 20000
    assert drawn == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.015)


def test_two_parents_need_a_pool_of_two() -> None:
    with pytest.raises(ValueError, match="a pool of at least 2, got 1"):
        draw_parents(1, np.random.default_rng(0))


def test_extinction_factors_match_values_worked_out_by_hand() -> None:
    # Φ_max = .4 (below twice the median, .5): (Φ_i + .1·(i/3 − 1)) / .4
    factors = extinction_factors(finished(0.1, 0.2, 0.3, 0.4))
    assert factors == pytest.approx([0.0, (0.2 - 0.2 / 3) / 0.4, (0.3 - 0.1 / 3) / 0.4, 0.4 / 0.4])


def test_the_worst_score_counts_as_at_most_twice_the_median() -> None:
    # Median .2, so Φ_max = .4 rather than 1; the worst, (1 + 0)/.4, is clipped.
    assert extinction_factors(finished(0.1, 0.2, 1.0)) == pytest.approx(
        [0.0, (0.2 - 0.05) / 0.4, 1.0]
    )


@pytest.mark.parametrize("outcome", ["diverged", "infeasible"])
@pytest.mark.parametrize("fitness", [0.0, 1.0, 1e6])
def test_failed_runs_do_not_touch_the_factors_of_the_finished(outcome: str, fitness: float) -> None:
    failed = Evaluation(fitness, outcome=outcome)
    factors = extinction_factors([*finished(0.1, 0.2, 0.3), failed])
    # As by hand with N = 4, i = 0 … 2 and Φ_max = .3 of the finished alone.
    assert factors == pytest.approx([0.0, (0.2 - 0.2 / 3) / 0.3, (0.3 - 0.1 / 3) / 0.3, 1.0])


def test_a_stopped_run_counts_as_what_it_is_estimated_at() -> None:
    stopped = Evaluation(0.2, outcome="stopped")
    # N = 3, Φ_min = .1, Φ_max = .3; the stopped one is last, whatever its estimate.
    assert extinction_factors([*finished(0.1, 0.3), stopped]) == pytest.approx(
        [0.0, (0.3 - 0.05) / 0.3, 0.2 / 0.3]
    )


def test_a_population_of_failed_runs_is_wholly_extinct() -> None:
    failed = [Evaluation(math.inf, outcome="diverged")] * 3
    assert extinction_factors(failed).tolist() == [1.0, 1.0, 1.0]


def test_nothing_is_extinct_where_all_is_perfect_or_alone() -> None:
    assert extinction_factors(finished(0.0, 0.0, 0.0)).tolist() == [0.0, 0.0, 0.0]
    assert extinction_factors(finished(0.3)).tolist() == [0.0]


def test_scores_below_zero_are_measured_from_the_best() -> None:
    shifted = extinction_factors(finished(0.0, 1.0, 1.5))
    assert extinction_factors(finished(-2.0, -1.0, -0.5)) == pytest.approx(shifted)


@given(fitnesses)
def test_factors_lie_in_0_to_1_and_rise_with_the_rank(scores: list[float]) -> None:
    factors = extinction_factors(finished(*scores))
    assert np.all((factors >= 0) & (factors <= 1))
    assert np.all(np.diff(factors) >= -1e-12)
    assert factors[0] == 0


def test_nearly_perfect_scores_do_not_overflow() -> None:
    assert extinction_factors(finished(0.0, 5e-324, 1.0)).tolist() == [0.0, 0.5, 1.0]


def test_an_unsorted_or_empty_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="sorted best first"):
        extinction_factors(finished(0.2, 0.1))
    with pytest.raises(ValueError, match="sorted best first"):
        extinction_factors([])


def test_a_stopped_run_without_an_estimate_counts_as_failed() -> None:
    hopeless = [Evaluation(math.inf, outcome="stopped")] * 3
    ranking = [Evaluation(0.2), Evaluation(0.4), *hopeless]
    factors = extinction_factors(ranking)
    assert (
        factors[:2].tolist()
        == extinction_factors(ranking[:2] + [Evaluation(0.5, outcome="diverged")] * 3)[:2].tolist()
    )
    assert factors[2:].tolist() == [1, 1, 1]
