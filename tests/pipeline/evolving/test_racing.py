"""Who is stopped, who never is, and that a stopped candidate is never more than that."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune.evolution import BioTune
from biotune.evolution.candidate import Candidate
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve, stopping_epoch
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation
from pipeline.evolving.forecast import (
    FEWEST_CURVES,
    FIRST_STOP,
    LEAST_SLOPE,
    MADE_UP_BY,
    SMALLEST_ERROR,
    Forecast,
    forecast_after,
)
from pipeline.evolving.loop import SearchResult, new_search
from pipeline.evolving.racing import LUCK, SEED_OPTIMISM, FullTraining, Race, start_race
from pipeline.params import Params, SearchParams
from pipeline.trials.runs import TrainingRun
from tests.pipeline.trainings import BLOCKS, Trainings, task, whole_search

EPOCHS = 6
HALVES = Forecast(1.0, math.log(0.5), math.log(0.25))


def rising(final: float, epochs: int = EPOCHS, start: float = 0.5) -> LearningCurve:
    """A run whose error falls by the same factor in every epoch."""
    errors = np.geomspace(start, 1 - final, epochs)
    accuracies = tuple(float(1 - error) for error in errors)
    return LearningCurve((1.0,) * epochs, accuracies, (0.1,) * epochs, 10, "finished", 0.5)


def unsteady(final: float, rng: np.random.Generator) -> LearningCurve:
    """The same with noise of a tenth of the error."""
    errors = np.geomspace(0.5, 1 - final, EPOCHS) * np.exp(rng.normal(0, 0.1, EPOCHS))
    accuracies = tuple(float(1 - error) for error in errors)
    return replace(rising(final), validation_score=accuracies)


def run_of(curve: LearningCurve, seed: int = 0) -> TrainingRun:
    return TrainingRun(task(seed=seed), curve, from_store=False)


def full_training(seeds: int = 1) -> FullTraining:
    settings = TrainingSettings(EPOCHS, EPOCHS, 4, 0.001)
    return FullTraining(tuple(range(seeds)), settings)


def race(**changes: Any) -> Race:
    """One that knows of the spread of seeds, and that errors halve from any epoch on, and of the
    luckiest runs became a quarter."""
    values: dict[str, Any] = {
        "full": full_training(3),
        "places": 2,
        "needed": {7: 0.05},
        "seed_spread": 0.2,
        "forecasts": (None, *[HALVES] * 4),
    }
    return Race(**(values | changes))


@pytest.fixture
def candidate() -> Candidate:
    """Number 7 of a search."""
    return BioTune(BLOCKS, population=8, elites=2).ask()[7]


# --- seeds


def test_the_next_seed_is_run_while_the_allowance_for_bad_luck_reaches_what_is_needed(
    candidate: Candidate,
) -> None:
    held = race()
    assert held.enough(0.05, 3) == pytest.approx(0.05)
    assert 0.05 < held.enough(0.05, 2) < held.enough(0.05, 1)
    spread = SEED_OPTIMISM * 0.2 * math.sqrt(2 / 3)  # of one seed of three
    assert held.enough(0.05, 1) == pytest.approx(0.052 * math.exp(spread) - 0.002)
    enough = 1 - held.enough(0.05, 1)
    just, beyond = (run_of(rising(enough + edge)) for edge in (1e-6, -1e-6))
    assert held.deserves_another_seed(candidate, [just])
    assert not held.deserves_another_seed(candidate, [beyond])


def test_a_candidate_that_needs_nothing_gets_everything(candidate: Candidate) -> None:
    free = race(needed={})
    assert free.must_reach(candidate, []) == ()
    assert free.deserves_another_seed(candidate, [run_of(rising(0.1))])


# --- epochs


@given(st.floats(0.0, 0.999), st.floats(0.001, 0.6))
def test_thresholds_stop_just_the_runs_that_even_the_luckiest_end_leaves_short(
    accuracy: float, needed: float
) -> None:
    candidate = BioTune(BLOCKS, population=8, elites=2).ask()[7]
    held = race(needed={7: needed}, full=full_training(1))
    thresholds = held.must_reach(candidate, [])
    reached = 0.25 * (1 - accuracy + SMALLEST_ERROR) - SMALLEST_ERROR
    stop = stopping_epoch([0.0, accuracy], thresholds)
    if abs(reached - needed) > 1e-9:
        assert (stop is not None) == (reached > needed)


def test_nothing_is_asked_of_the_first_epochs_nor_of_the_last(candidate: Candidate) -> None:
    thresholds = race().must_reach(candidate, [])
    assert thresholds[0] == 0.0
    assert len(thresholds) == EPOCHS - 1
    assert all(threshold > 0 for threshold in thresholds[1:])
    curves = [rising(accuracy) for accuracy in np.linspace(0.8, 0.9, 2 * FEWEST_CURVES)]
    forecasts = [forecast_after(curves, done) for done in range(1, EPOCHS)]
    assert [forecast is None for forecast in forecasts] == [True, True, False, False, False]
    assert FIRST_STOP == 3


def test_a_later_seed_has_to_make_up_for_a_poor_first_one(candidate: Candidate) -> None:
    held = race()
    good, poor = (held.must_reach(candidate, [run_of(rising(a))]) for a in (0.97, 0.94))
    assert all(p > g for g, p in zip(good[1:], poor[1:], strict=True))


@pytest.mark.parametrize("slope", [0.3, 0.7, 1.0])
@given(needed=st.floats(0.001, 0.5))
def test_what_must_come_before_an_end_is_what_forecasts_it(slope: float, needed: float) -> None:
    forecast = Forecast(slope, offset=-0.5, best_offset=-0.8)
    most = forecast.most_before(needed)
    luckiest = replace(forecast, offset=forecast.best_offset)
    assert luckiest.end_after(most) == pytest.approx(needed)
    # A usual run would end worse, by the ratio of the two offsets.
    usual = (needed + SMALLEST_ERROR) * math.exp(0.3) - SMALLEST_ERROR
    assert forecast.end_after(most) == pytest.approx(usual)
    assert forecast.most_before(-0.1) == 0.0


def test_forecasts_are_the_regression_of_the_recorded_ends_on_the_errors_so_far(
    candidate: Candidate,
) -> None:
    """Errors that end as the square root of what they were after three epochs, but for two."""
    offsets = np.zeros(12)
    offsets[:2] = (-0.4, 0.4)
    starts = np.geomspace(0.02, 0.2, 12)
    curves = []
    for start, offset in zip(starts, offsets, strict=True):
        end = math.exp(0.5 * math.log(start) - 2.5 + offset)
        so_far = 1 + SMALLEST_ERROR - start
        shown = (0.1, so_far, so_far, so_far, so_far, 1 + SMALLEST_ERROR - end)
        curves.append(LearningCurve((1.0,) * 6, shown, (0.1,) * 6, 10, "finished", 0.5))
    forecast = forecast_after(curves * 2, 3)  # of the better half of them
    assert forecast is not None
    assert forecast.slope == pytest.approx(0.5, abs=0.15)
    assert forecast.end_after(0.05) == pytest.approx(math.sqrt(0.052) * math.exp(-2.5), 0.15)
    good = sorted(curves, key=lambda its: -its.validation_score[-1])[:6]
    so_far, ends = (
        np.log([1 - max(its.validation_score[:epochs]) + SMALLEST_ERROR for its in good])
        for epochs in (3, EPOCHS)
    )
    left = ends - forecast.slope * so_far
    assert forecast.slope == pytest.approx(max(LEAST_SLOPE, np.polyfit(so_far, ends, 1)[0]))
    assert forecast.offset == pytest.approx(np.median(left))
    assert forecast.best_offset == pytest.approx(np.quantile(np.tile(left, 2), MADE_UP_BY))
    assert forecast.best_offset < forecast.offset - 0.2


# --- what a race knows


def told(search: BioTune, curves: list[LearningCurve]) -> list[tuple[Candidate, list[TrainingRun]]]:
    """Tell the initial population these curves, one each."""
    pairs = []
    for candidate, curve in zip(search.ask(), curves, strict=True):
        evaluation = Evaluation(1 - max(curve.validation_score))
        search.tell(candidate, evaluation)
        run = TrainingRun(replace(task(), plan=candidate.plan), curve, from_store=False)
        pairs.append((replace(candidate, evaluation=evaluation), [run]))
    return pairs


def test_without_elites_there_is_nothing_to_be_held_against() -> None:
    search = BioTune(BLOCKS, population=8, elites=2)
    full = full_training()
    assert start_race(search.ask(), search.standing_elites, [], full, 2) == Race(full, 3)


def firsts(*accuracies: float) -> dict[int, list[TrainingRun]]:
    return {key: [run_of(rising(accuracy))] for key, accuracy in enumerate(accuracies)}


@pytest.mark.parametrize(
    ("elites", "expected"),
    [(1, {1, 4}), (2, {1, 2, 4}), (3, {0, 1, 2, 4}), (4, {0, 1, 2, 3, 4})],
)
def test_of_the_first_generation_one_more_than_there_are_elites_get_all_seeds(
    elites: int, expected: set[int]
) -> None:
    batch = dict(enumerate(BioTune(BLOCKS, population=5, elites=elites).ask()))
    first = firsts(0.80, 0.95, 0.90, 0.70, 0.99)
    opening = start_race(list(batch.values()), [], [], full_training(3), elites)
    assert opening.deserve_all_seeds(first) == expected


def test_a_failed_first_run_gets_no_more_seeds() -> None:
    first = firsts(0.9, 0.8, 0.7, 0.6)
    first[1] = [run_of(replace(rising(0.99), outcome="diverged"))]
    opening = Race(full_training(3), 3)
    assert opening.deserve_all_seeds(first) == {0, 2, 3}


def test_where_a_later_generation_has_nothing_to_be_held_against_all_get_all_seeds() -> None:
    later = {k: replace(founder, generation=1) for k, founder in enumerate(BioTune(BLOCKS).ask())}
    first = firsts(*np.linspace(0.5, 0.9, len(later)))
    race_of_all = start_race(list(later.values()), [], [], full_training(3), 2)
    assert race_of_all.deserve_all_seeds(first) == set(later)


def test_of_a_batch_as_many_go_on_as_there_are_elites_and_those_that_run_in_full() -> None:
    held = race(needed=dict.fromkeys(range(4), 0.2))
    first = firsts(0.7, 0.8, 0.75, 0.6)
    assert held.deserve_all_seeds(first) == {1, 2}
    assert replace(held, places=1).deserve_all_seeds(first) == {1}
    whole = race(needed=dict.fromkeys(range(3), 0.2))  # the last is a plan that was trained before
    assert whole.deserve_all_seeds(first) == {1, 2, 3}
    better = {**first, 3: [run_of(rising(0.9))]}  # and takes no place of those that are raced
    assert whole.deserve_all_seeds(better) == {1, 2, 3}
    failed = {**first, 1: [run_of(replace(rising(0.99), outcome="diverged"))]}
    assert held.deserve_all_seeds(failed) == {0, 2}


def test_a_stopped_candidate_scores_what_it_was_heading_for_but_no_better_than_it_needed(
    candidate: Candidate,
) -> None:
    held = race(needed={7: 0.05})
    far = rising(0.5).up_to(2)  # half of its error is left at the end
    error = 1 - max(far.validation_score)
    expected = 0.5 * (error + SMALLEST_ERROR) - SMALLEST_ERROR
    stopped = held.stopped(candidate, [run_of(far)])
    assert (stopped.outcome, stopped.fitness) == ("stopped", pytest.approx(expected))
    near = rising(0.97).up_to(EPOCHS - 1)
    assert held.stopped(candidate, [run_of(near)]).fitness == 0.05


def test_trials_and_offspring_must_come_near_the_worst_elite() -> None:
    search = BioTune(BLOCKS, population=10, elites=2)
    pairs = told(search, [rising(0.6 + 0.03 * i) for i in range(10)])
    elites = search.standing_elites
    assert [elite.fitness for elite in elites] == pytest.approx([0.13, 0.16])
    trials = search.ask()
    assert {trial.role for trial in trials} == {"trial"}
    assert {trial.parents[0] for trial in trials} == {elite.id for elite in elites}
    held = start_race(trials, elites, pairs, full_training(), 2)
    assert held.needed == {trial.id: pytest.approx((1 + LUCK) * 0.16) for trial in trials}
    assert held.places == 2
    for trial in trials:
        search.tell(trial, 0.5)
    offspring = search.ask()
    assert len(offspring) == 8
    held = start_race(offspring, search.standing_elites, pairs, full_training(), 2)
    assert held.needed == {child.id: pytest.approx((1 + LUCK) * 0.16) for child in offspring}
    assert pytest.approx(0.03) == LUCK


def test_with_a_scan_the_initial_population_must_come_near_the_scans_best() -> None:
    search = BioTune(BLOCKS, population=6, elites=2, surgical_scan=True)
    pairs = told(search, [rising(accuracy) for accuracy in (0.6, 0.8, 0.7, 0.75)])
    founders = search.ask()
    assert {founder.generation for founder in founders} == {0}
    held = start_race(founders, search.standing_elites, pairs, full_training(), 2)
    new = {founder.id for founder in founders if founder.plan not in {c.plan for c, _ in pairs}}
    assert held.needed == {key: pytest.approx((1 + LUCK) * 0.25) for key in new}
    assert new
    assert held.places == 2


@pytest.mark.parametrize("outcome", ["diverged", "infeasible"])
def test_where_an_elite_has_failed_nobody_is_held_against_it(outcome: Any) -> None:
    search = BioTune(BLOCKS, population=6, elites=2, surgical_scan=True)
    pairs = told(search, [rising(accuracy) for accuracy in (0.6, 0.8, 0.7, 0.75)])
    best, second = search.standing_elites
    failed = replace(second, evaluation=Evaluation(1.0, outcome=outcome))
    full, founders = full_training(3), search.ask()
    assert start_race(founders, [best, failed], pairs, full, 2) == Race(full, places=3)
    later = [replace(founder, generation=1) for founder in founders]
    assert start_race(later, [best, failed], pairs, full, 2) == Race(full, places=6)
    estimated = replace(second, evaluation=Evaluation(0.3, outcome="stopped"))
    held = start_race(founders, [best, estimated], pairs, full, 2)
    assert set(held.needed.values()) == {(1 + LUCK) * 0.3}


def test_scores_of_another_fold_race_nobody() -> None:
    search = BioTune(BLOCKS, population=8, elites=2, folds=2)
    pairs = told(search, [rising(0.7)] * 8)
    held = start_race(search.ask(), search.standing_elites, pairs, full_training(), 2)
    assert held == Race(full_training(), places=len(search.ask()))


def test_no_run_is_stopped_by_too_few_curves(candidate: Candidate) -> None:
    few = [
        (replace(candidate, evaluation=Evaluation(0.1)), [run_of(rising(0.9), seed)])
        for seed in range(FEWEST_CURVES - 1)
    ]
    elite = replace(candidate, evaluation=Evaluation(0.1))
    fresh = replace(candidate, plan=task({**dict.fromkeys(BLOCKS), "head": 2.0}).plan)
    held = start_race([fresh], [elite], few, full_training(), 2)
    assert set(held.must_reach(fresh, [])) == {0.0}


def test_of_recorded_runs_that_would_do_most_go_on_and_of_the_others_few(
    candidate: Candidate,
) -> None:
    """All thresholds together, on curves as unsteady as real ones."""
    rng = np.random.default_rng(0)
    curves = [unsteady(a, rng) for a in rng.uniform(0.8, 0.99, 60)]
    elite = replace(candidate, evaluation=Evaluation(0.05))
    pairs = [
        (replace(candidate, evaluation=Evaluation(0.1)), [run_of(curve, seed)])
        for seed, curve in enumerate(curves)
    ]
    fresh = replace(candidate, plan=task({**dict.fromkeys(BLOCKS), "head": 2.0}).plan)
    held = start_race([fresh], [elite], pairs, full_training(), 2)
    thresholds = held.must_reach(fresh, [])
    worthy = [c for c in curves if max(c.validation_score) >= 0.95]
    others = [c for c in curves if c not in worthy]
    for group, most, least in ((worthy, 0.1, 0.0), (others, 1.0, 0.8)):
        stopped = [stopping_epoch(c.validation_score, thresholds) is not None for c in group]
        assert least <= np.mean(stopped) <= most


# --- whole searches


def search_with(params: SearchParams, **options: Any) -> tuple[SearchResult, Trainings]:
    def answer(task: TrainingTask) -> LearningCurve:
        """Plans are better the fewer blocks they train; a seed is worth up to a point."""
        text = str(task.plan)
        rng = np.random.default_rng([task.seed, *text.encode()])
        final = 0.95 - 0.08 * len(task.plan.trained_blocks) + rng.uniform(-0.01, 0.01)
        return rising(final, start=rng.uniform(0.4, 0.7))

    trainings = Trainings(answer, **options)
    return whole_search(params, trainings), trainings


@pytest.fixture
def params(default_params: Params) -> SearchParams:
    changes = {"training_seeds": [0, 1, 2], "epochs": EPOCHS, "generations": 4, "population": 8}
    return default_params.search.model_copy(update=changes)


def epochs_of(result: SearchResult) -> int:
    return sum(evaluated.epochs for evaluated in result.evaluated)


def test_racing_trains_less_and_stopped_candidates_rank_behind_and_never_win(
    params: SearchParams,
) -> None:
    full, _ = search_with(params.model_copy(update={"racing": False}))
    raced, _ = search_with(params.model_copy(update={"racing": True}))
    assert epochs_of(raced) < epochs_of(full)
    assert len(raced.evaluated) == len(full.evaluated)
    stopped = [c for c in raced.evaluated if c.candidate.evaluation.outcome == "stopped"]
    assert stopped
    scan = [told for told in raced.evaluated if told.candidate.origin.startswith("scan:")]
    assert {len(evaluated.runs) for evaluated in scan} == {1, 3}
    for loser in stopped:
        assert all(
            c.candidate is None or c.candidate.id != loser.candidate.id for c in raced.confirmations
        )
        *earlier, last = (run.curve for run in loser.runs)
        assert {curve.outcome for curve in earlier} <= {"finished"}
        assert last.outcome == "stopped" or len(last.validation_score) == EPOCHS
    assert full.winner.evaluation.fitness == pytest.approx(
        raced.winner.evaluation.fitness, abs=0.01
    )


def test_the_first_generation_without_a_scan_and_a_scan_are_held_against_nothing(
    params: SearchParams,
) -> None:
    changes = {"surgical_scan": False, "training_seeds": [0]}
    single, _ = search_with(params.model_copy(update=changes))
    first = [evaluated for evaluated in single.evaluated if evaluated.candidate.generation == 0]
    assert all(evaluated.candidate.finished for evaluated in first)
    several, _ = search_with(params.model_copy(update={"surgical_scan": False}))
    first = [evaluated for evaluated in several.evaluated if evaluated.candidate.generation == 0]
    assert sorted(len(evaluated.runs) for evaluated in first) == [1] * 5 + [3] * 3
    scanned, _ = search_with(params.model_copy(update={"training_seeds": [0]}))
    scan = [told for told in scanned.evaluated if told.candidate.origin.startswith("scan:")]
    assert len(scan) == len(BLOCKS)
    assert all(evaluated.candidate.finished for evaluated in scan)


def test_with_a_scan_the_first_generation_is_held_against_its_best(params: SearchParams) -> None:
    raced, _ = search_with(params.model_copy(update={"surgical_scan": True}))
    first = [evaluated for evaluated in raced.evaluated if evaluated.candidate.generation == 0]
    scan = [evaluated for evaluated in first if evaluated.candidate.origin.startswith("scan:")]
    whole = [evaluated for evaluated in scan if evaluated.candidate.finished]
    assert len(whole) == params.elites + 1
    later = [evaluated for evaluated in first if evaluated not in scan]
    worst = sorted(evaluated.candidate.fitness for evaluated in whole)[params.elites - 1]
    stopped = [evaluated for evaluated in later if not evaluated.candidate.finished]
    assert stopped
    assert all(told.candidate.fitness >= (1 + LUCK) * worst for told in stopped)
    assert any(told.runs[-1].curve.outcome == "stopped" for told in stopped)
    again = {told.candidate.plan for told in whole}
    new = [evaluated for evaluated in later if evaluated.candidate.plan not in again]
    assert {run.task.must_reach != () for told in new for run in told.runs} == {True}


def test_all_of_a_later_generation_are_held_against_the_worst_elite_and_leniently(
    params: SearchParams,
) -> None:
    search = new_search(params, BLOCKS)
    worst: dict[int, float] = {}

    def answer(task: TrainingTask) -> LearningCurve:
        waiting = [candidate for candidate in search.ask() if candidate.plan == task.plan]
        elites = search.standing_elites
        worst.update((c.id, max(e.fitness for e in elites)) for c in waiting if elites)
        return rising(0.95 - 0.08 * len(task.plan.trained_blocks) - 0.01 * (task.seed % 2))

    result = whole_search(params, Trainings(answer), search=search)
    stopped = [
        told.candidate
        for told in result.evaluated
        if told.candidate.generation and told.candidate.evaluation.outcome == "stopped"
    ]
    for role, origin in (("trial", "exploitation"), ("score", "offspring")):
        held = [c for c in stopped if (c.role, c.origin) == (role, origin)]
        limits = np.array([(1 + LUCK) * worst[candidate.id] for candidate in held])
        fitness = np.array([candidate.fitness for candidate in held])
        assert (fitness >= limits).all()
        # Who was stopped, but would have come to more, is told just what it needed.
        assert (fitness == limits).any()


def test_nobody_is_stopped_without_racing(params: SearchParams) -> None:
    full, _ = search_with(params.model_copy(update={"racing": False}))
    assert {c.candidate.evaluation.outcome for c in full.evaluated} == {"finished"}
    assert epochs_of(full) == len(full.evaluated) * 3 * EPOCHS
    assert new_search(params, BLOCKS).planned_evaluations == len(full.evaluated)


@pytest.mark.parametrize("racing", [True, False])
def test_the_order_in_which_runs_finish_changes_nothing(params: SearchParams, racing: bool) -> None:
    chosen = params.model_copy(update={"racing": racing})
    rng = np.random.default_rng(0)
    orders = [lambda _: 0, lambda n: n - 1, lambda n: int(rng.integers(n))]
    results = [search_with(chosen, order=order)[0] for order in orders]
    for other in results[1:]:
        assert [evaluated.candidate for evaluated in other.evaluated] == [
            evaluated.candidate for evaluated in results[0].evaluated
        ]
        assert [[run.curve for run in evaluated.runs] for evaluated in other.evaluated] == [
            [run.curve for run in evaluated.runs] for evaluated in results[0].evaluated
        ]
        assert [confirmation.plan for confirmation in other.confirmations] == [
            confirmation.plan for confirmation in results[0].confirmations
        ]
