"""Whom a race holds against what, and by which figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from biotune.evolution import BioTune
from biotune.evolution.candidate import Candidate
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation
from pipeline.evolving.forecast import SMALLEST_ERROR, Forecast, forecast_after
from pipeline.evolving.racing import FullTraining, Race, start_race
from pipeline.trials.runs import TrainingRun
from tests.pipeline.trainings import BLOCKS, curve, task

EPOCHS = 6
FULL = FullTraining((0,), TrainingSettings(EPOCHS, EPOCHS, 4, 0.001))


def shown(*errors: float) -> LearningCurve:
    scores = tuple(1 - error for error in errors)
    return LearningCurve((1.0,) * len(errors), scores, (0.1,) * len(errors), 10, "finished", 0.5)


def told(candidate: Candidate, *curves: LearningCurve) -> tuple[Candidate, list[TrainingRun]]:
    """A candidate that has finished, with the runs of its seeds."""
    runs = [
        TrainingRun(replace(task(seed=seed), plan=candidate.plan), trained, from_store=False)
        for seed, trained in enumerate(curves)
    ]
    return replace(candidate, evaluation=Evaluation(0.1)), runs


def second_generation(folds: int) -> tuple[BioTune, list[Candidate]]:
    """A search that asks for the trials of its elites; and the others of its first generation."""
    search = BioTune(BLOCKS, population=8, elites=2, folds=folds)
    for number, candidate in enumerate(search.ask()):
        search.tell(candidate, 0.1 + 0.01 * number)
    return search, search.history[2:]


def of_this_fold(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [replace(candidate, fold=1) for candidate in candidates]


def test_nobody_is_held_against_elites_of_another_fold() -> None:
    search, others = second_generation(folds=2)
    history = [told(candidate, curve(0.9)) for candidate in of_this_fold(others)]
    elites = search.standing_elites
    assert {candidate.fold for candidate in search.ask()} == {1}
    assert start_race(search.ask(), elites, history, FULL, 2) == Race(FULL, len(search.ask()))
    mixed = [elites[0], *of_this_fold(elites[1:])]
    assert start_race(search.ask(), mixed, history, FULL, 2) == Race(FULL, len(search.ask()))
    assert start_race(search.ask(), of_this_fold(elites), history, FULL, 2).needed


def test_an_elite_that_is_scored_again_runs_in_full() -> None:
    search, others = second_generation(folds=2)
    history = [told(candidate, curve(0.9)) for candidate in of_this_fold(others)]
    elites = of_this_fold(search.standing_elites)
    held = start_race(search.ask(), elites, history, FULL, 2)
    plans = {elite.plan for elite in elites}
    again = {candidate.id for candidate in search.ask() if candidate.plan in plans}
    assert len(again) >= 2
    raced = {candidate.id for candidate in search.ask()} - again
    assert set(held.needed) == raced
    assert raced


def test_a_plan_that_was_trained_in_full_runs_in_full() -> None:
    search, others = second_generation(folds=1)
    history = [told(candidate, curve(0.9)) for candidate in others]
    stopped = (replace(history[0][0], evaluation=Evaluation(0.3, outcome="stopped")), history[0][1])
    batch = search.ask()
    batch[:2] = [replace(batch[0], plan=others[0].plan), replace(batch[1], plan=others[1].plan)]
    held = start_race(batch, search.standing_elites, [stopped, *history[1:]], FULL, 2)
    assert set(held.needed) == {candidate.id for candidate in batch} - {batch[1].id}


def test_the_spread_of_seeds_is_pooled_over_the_candidates_and_unbiased() -> None:
    search, others = second_generation(folds=1)
    errors = [(0.1, 0.2, 0.4), (0.05, 0.1)]
    history = [
        told(candidate, *(curve(1 - error) for error in of_seeds))
        for candidate, of_seeds in zip(others[:2], errors, strict=True)
    ]
    held = start_race(
        search.ask(), search.standing_elites, history, replace(FULL, seeds=(0, 1, 2)), 2
    )
    logs = [np.log(np.array(of_seeds) + SMALLEST_ERROR) for of_seeds in errors]
    squares = sum(np.sum((log - log.mean()) ** 2) for log in logs)
    assert held.seed_spread == pytest.approx(math.sqrt(squares / (2 + 1)))


def test_a_forecast_is_of_the_epochs_that_it_is_named_for() -> None:
    """After three epochs errors tell the end; after two and after four all are alike."""
    curves = []
    for so_far in np.geomspace(0.1, 0.4, 14):
        end = math.exp(0.5 * math.log(so_far) - 3)
        tail = (0.04, 0.04, end - SMALLEST_ERROR)
        curves.append(shown(0.9, 0.9, so_far - SMALLEST_ERROR, *tail))
    forecast = forecast_after(curves, 3)
    assert forecast is not None
    assert (forecast.slope, forecast.offset) == (pytest.approx(0.5), pytest.approx(-3))
    assert forecast.best_offset == pytest.approx(-3)
    search, others = second_generation(folds=1)
    history = [told(others[0], *curves)]
    held = start_race(search.ask(), search.standing_elites, history, FULL, 2)
    assert held.forecasts == tuple(forecast_after(curves, done) for done in range(1, EPOCHS))
    assert [known is None for known in held.forecasts] == [True, True, False, False, False]


def test_a_run_is_judged_by_the_forecast_of_its_last_epoch() -> None:
    halves = Forecast(1.0, math.log(0.5), math.log(0.4))
    tenths = Forecast(1.0, math.log(0.1), math.log(0.05))
    candidate = BioTune(BLOCKS, population=8, elites=2).ask()[7]
    held = Race(
        FULL,
        places=2,
        needed={7: 0.01},
        forecasts=(None, halves, tenths),
    )
    run = TrainingRun(task(), replace(shown(0.6, 0.4), outcome="stopped"), from_store=False)
    expected = 0.5 * (0.4 + SMALLEST_ERROR) - SMALLEST_ERROR
    assert held.stopped(candidate, [run]).fitness == pytest.approx(expected)
    first, second, third = held.must_reach(candidate, [])
    assert first == 0.0
    assert 1 - second == pytest.approx((0.01 + SMALLEST_ERROR) / 0.4 - SMALLEST_ERROR)
    assert 1 - third == pytest.approx((0.01 + SMALLEST_ERROR) / 0.05 - SMALLEST_ERROR)
