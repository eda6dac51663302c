"""Simulated searches: what the model knows of recorded plans, and runs that are as trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.landscapes.campaign import ORIGINS, Experiment, run, summarise
from benchmarks.landscapes.landscape import SimulatedLandscape
from benchmarks.landscapes.methods import METHODS, REFERENCE, searched
from benchmarks.landscapes.simulator import SimulatedRuns
from benchmarks.landscapes.surrogate import LEAST_R2, LEAST_RHO, Recorded, cross_validated
from benchmarks.rivals import BATCH, RandomSampler, Rival
from biotune.data.division import Division
from biotune.evolution.recipes import recipes
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.plan import FineTunePlan
from pipeline.evolving.confirmation import most_runs
from pipeline.evolving.loop import new_search
from pipeline.params import SearchParams, load_params

FOLDER = Path(__file__).parents[2] / "benchmarks" / "landscapes"
RECORDINGS = sorted(FOLDER.glob("*.csv"))
DIGITS = FOLDER / "digits32.csv"


@pytest.fixture(scope="module")
def digits() -> SimulatedLandscape:
    return SimulatedLandscape(DIGITS)


@pytest.fixture(scope="module")
def section() -> SearchParams:
    return load_params(Path(__file__).parents[2] / "params.yaml").search


def answers(runs: SimulatedRuns, tasks: list[TrainingTask]) -> Iterator[LearningCurve]:
    for task in tasks:
        runs.submit(task)
        yield runs.next_finished().curve


def some_tasks(landscape: SimulatedLandscape) -> list[TrainingTask]:
    plans = list(landscape.recorded.runs)[::20]
    where = [
        (0, Division()),
        (1, Division()),
        (0, Division(resampled=0)),
        (2, Division(resampled=3)),
    ]
    return [TrainingTask(plan, s, landscape.settings, d) for plan in plans for s, d in where]


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_plans_that_were_left_out_are_predicted_well(file: Path) -> None:
    quality = cross_validated(Recorded.read(file), folds=5)
    r2, rho = quality["validation"]
    assert r2 >= LEAST_R2
    assert rho >= LEAST_RHO
    assert min(quality["test"][0], quality["seconds"][0]) >= 0.7


def test_a_curve_is_the_same_in_any_order_and_process_and_another_in_each_replicate(
    digits: SimulatedLandscape,
) -> None:
    tasks = some_tasks(digits)
    curves = dict(zip(tasks, answers(SimulatedRuns([digits], 3), tasks), strict=True))
    backwards = list(reversed(tasks))
    again = SimulatedRuns([SimulatedLandscape(DIGITS)], 3)
    assert all(
        curves[t].validation_score == c.validation_score and curves[t].seconds == c.seconds
        for t, c in zip(backwards, answers(again, backwards), strict=True)
    )
    others = list(answers(SimulatedRuns([digits], 4), tasks))
    same = [
        curves[t].validation_score == c.validation_score for t, c in zip(tasks, others, strict=True)
    ]
    assert np.mean(same) < 0.1
    assert len({curve.validation_score for curve in curves.values()}) > 0.9 * len(tasks)


def test_a_run_ends_by_its_patience_and_its_thresholds_as_a_trained_one(
    digits: SimulatedLandscape,
) -> None:
    ended = set()
    for task in some_tasks(digits):
        patient = replace(task, settings=replace(task.settings, patience=2))
        raced = replace(task, must_reach=(0.0, 0.5))
        whole, short, stopped = answers(SimulatedRuns([digits], 0), [task, patient, raced])
        scores = whole.validation_score
        ends = [e for e in range(3, 9) if max(scores[: e - 2]) >= max(scores[e - 2 : e])]
        assert short.validation_score == scores[: min(ends, default=8)]
        assert short.seconds == pytest.approx(whole.seconds * len(short.train_loss) / 8)
        assert stopped.outcome == ("stopped" if max(scores[:2]) < 0.5 else "finished")
        assert stopped.validation_score == (scores[:2] if stopped.outcome == "stopped" else scores)
        ended |= {len(short.train_loss), stopped.outcome}
    assert {8, "stopped", "finished"} < ended


def test_what_was_trained_costs_nothing_once_more(digits: SimulatedLandscape) -> None:
    task = some_tasks(digits)[0]
    runs = SimulatedRuns([digits], 0)
    impossible = replace(task, must_reach=(0.0, 1.01))
    (first,) = answers(runs, [impossible])
    assert (runs.workers.runs, runs.workers.epochs) == (1, 2)
    assert list(answers(runs, [impossible])) == [first]
    assert runs.workers.runs == 1
    (whole,) = answers(runs, [task])  # nothing is known beyond where it was stopped
    assert (runs.workers.runs, runs.workers.epochs) == (2, 10)
    list(answers(runs, [task, impossible, replace(task, must_reach=(0.1,))]))
    assert runs.workers.runs == 2
    assert runs.workers.cpu_seconds == first.seconds + whole.seconds


def test_what_was_not_recorded_is_refused(digits: SimulatedLandscape) -> None:
    task = some_tasks(digits)[0]
    for other, said in (
        (replace(task, settings=replace(task.settings, epochs=4)), "schedules of 8 epochs"),
        (replace(task, settings=replace(task.settings, base_lr=0.01)), "was recorded with"),
        (replace(task, division=Division(0, 2)), "whole splits"),
        (replace(task, plan=FineTunePlan({"stem": 1.0})), "has the blocks"),
        (replace(task, plan=FineTunePlan(dict.fromkeys(digits.blocks))), "trains no block"),
    ):
        with pytest.raises(ValueError, match=said):
            list(answers(SimulatedRuns([digits], 0), [other]))


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_runs_lie_round_the_recorded_ones_and_scatter_as_they_do(file: Path) -> None:
    landscape = SimulatedLandscape(file)
    recorded, simulated, deviations = [], [], []
    for plan, group in landscape.recorded.runs.items():
        prepared = [r for r in group if r.run.task.division.resampled is None]
        if len(prepared) == 5:
            tasks = [TrainingTask(plan, seed, landscape.settings) for seed in range(5)]
            curves = [list(answers(SimulatedRuns([landscape], n), tasks)) for n in range(8)]
            best = np.array([[max(c.validation_score) for c in five] for five in curves])
            simulated.append(best.std(axis=1, ddof=1).mean())
            scores = [max(run.curve.validation_score) for run in prepared]
            recorded.append(np.std(scores, ddof=1))
            deviations.append(best.mean() - np.mean(scores))
            assert landscape.truth(plan) == pytest.approx(
                np.mean([run.test_score for run in prepared]), abs=0.12
            )
    assert len(recorded) == 15
    assert np.mean(recorded) / 1.5 < np.mean(simulated) < np.mean(recorded) * 1.5
    assert abs(np.median(deviations)) < 0.02
    truths = [landscape.truth(plan) for plan in landscape.recorded.runs]
    assert max(truths) <= landscape.best_truth < max(truths) + 0.05
    assert landscape.best_plan.trained_blocks


def test_a_whole_search_finds_a_good_plan_and_counts_each_run_once(
    digits: SimulatedLandscape, section: SearchParams
) -> None:
    runs = SimulatedRuns([digits], 0)
    search = new_search(section, digits.blocks)
    result, evolution = searched(search, section, digits.blocks, runs)
    fresh = {
        run.task: run.curve
        for group in (*result.evaluated, *result.confirmations)
        for run in group.runs
        if not run.from_store
    }
    assert len(fresh) <= search.planned_evaluations + most_runs(section) == 32 + 17
    assert runs.workers.runs == len(fresh)
    of_search = [
        run.curve.seconds for told in result.evaluated for run in told.runs if not run.from_store
    ]
    assert evolution == pytest.approx(sum(of_search))
    assert evolution < runs.workers.cpu_seconds
    assert runs.workers.epochs == sum(len(curve.validation_score) for curve in fresh.values())
    assert runs.workers.cpu_seconds == pytest.approx(sum(c.seconds for c in fresh.values()))
    assert 0.9 < digits.truth(result.winner.plan) <= digits.best_truth


def test_a_rival_tries_the_recipes_and_then_what_it_samples_until_its_budget_is_spent(
    digits: SimulatedLandscape,
) -> None:
    told: list[FineTunePlan] = []
    sampler = RandomSampler(len(digits.blocks), seed=0)
    rival = Rival("random", sampler, digits.blocks, 3, over=lambda: len(told) >= 8)
    while not rival.done:
        for candidate in rival.ask():
            told.append(rival.tell(candidate, 1 - 0.1 * candidate.id).plan)
    assert len(told) == len(rival.history) == 3 + 3 * BATCH
    names = [recipe.name for recipe in recipes(digits.blocks)[:3]]
    assert [candidate.recipe for candidate in rival.history[:3]] == names
    assert all(plan.trained_blocks for plan in told)
    assert rival.best is rival.ranked[0] is rival.history[-1]


def test_a_campaign_says_what_each_method_found_at_which_cost(section: SearchParams) -> None:
    budget = 40.0
    rows = [
        run(Experiment(DIGITS, method, replicate, budget), section)
        for method in METHODS
        for replicate in range(2)
    ]
    assert all(0 <= row.regret < 0.2 and row.winner in ORIGINS for row in rows)
    by_method = {method: [row for row in rows if row.method == method] for method in METHODS}
    for rival in ("random", "tpe", "cma_es"):
        assert all(abs(row.evolution_seconds - budget) < 6 for row in by_method[rival])
    for row in by_method["today"]:
        assert budget <= row.evolution_seconds < budget + 12
    stopped = {m: sum(row.deserving_stopped for row in group) for m, group in by_method.items()}
    assert stopped["today"] > 0 == stopped["screened, nobody stopped"]
    bred = {m: sum(row.bred for row in group) for m, group in by_method.items()}
    assert bred[REFERENCE] < bred["screened, 3 generations"]
    table = summarise([*rows, *(replace(row, landscape="another") for row in rows)])
    places = [row["landscape"] for row in table]
    assert places == [place for place in ("digits32", "another", "all") for _ in METHODS]
    assert table[0]["method"] == REFERENCE
    assert table[0][f"against {REFERENCE}"] == ""
    assert any(row[f"against {REFERENCE}"] for row in table)
    assert _means(table, "digits32") == _means(table, "all") != {}


def _means(table: list[dict[str, str]], landscape: str) -> dict[str, str]:
    return {
        row["method"]: row["regret, test points"].split()[0]
        for row in table
        if row["landscape"] == landscape
    }
