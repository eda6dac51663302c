"""The loop of ask and tell, and the confirmation that decides the winner."""

from __future__ import annotations

from typing import Any

import pytest

from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.evolving.loop import (
    SearchFailedError,
    evolve,
    new_search,
)
from pipeline.evolving.racing import cost_rank
from pipeline.params import Params, SearchParams
from pipeline.trials.machine import training_settings
from tests.pipeline.trainings import BLOCKS, Trainings, curve, whole_search


def changed(params: Params, **changes: Any) -> SearchParams:
    return params.search.model_copy(update=changes)


def middle_is_best(task: TrainingTask) -> LearningCurve:
    """The fewer blocks but the middle one are trained, the better."""
    others = sum(task.plan[block] is not None for block in BLOCKS if block != "middle")
    return curve((0.9 if task.plan["middle"] else 0.5) - 0.1 * others)


def test_without_a_race_each_genome_is_told_as_its_last_seed_ends(default_params: Params) -> None:
    """Nobody waits for the batch: of ten genomes with three seeds, the first is told after three
    runs, and each next one after three more."""
    params = changed(
        default_params,
        population=10,
        generations=0,
        training_seeds=[0, 1, 2],
        racing=False,
        surgical_scan=False,
    )
    trainings = Trainings(middle_is_best, order=lambda _: 0)
    search = new_search(params, BLOCKS)
    order = list(dict.fromkeys(candidate.plan for candidate in search.ask()))
    order.sort(key=lambda plan: cost_rank(TrainingTask(plan, 0, training_settings(params))))
    done, told = [], []
    for evaluated in evolve(search, params, trainings):
        told.append(evaluated.candidate.plan)
        done.append(len(trainings.asked))
    assert list(dict.fromkeys(told)) == order
    assert done[0] == 3
    assert done == sorted(done)
    assert set(done) == {3 * (place + 1) for place in range(len(order))}


def test_with_folds_a_plan_that_fails_on_its_first_seed_gets_no_others(
    default_params: Params,
) -> None:
    """Also in a batch that is held against nothing, because the fold has just changed."""
    params = changed(
        default_params, folds=2, training_seeds=[0, 1, 2], surgical_scan=False, screening=False
    )
    failed = LearningCurve((), (), (), 10, "diverged", 0.1)
    trainings = Trainings(lambda task: middle_is_best(task) if task.plan["stem"] else failed)
    result = whole_search(params, trainings)
    lengths = {len(told.runs) for told in result.evaluated if told.candidate.failed}
    assert lengths == {1}
    assert {told.candidate.fold for told in result.evaluated if told.candidate.failed} == {0, 1}


def test_an_optimizer_that_is_not_done_and_asks_for_nothing_is_an_error(
    default_params: Params,
) -> None:
    search = new_search(default_params.search, BLOCKS)
    search.ask = list  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="asks for nothing"):
        next(evolve(search, default_params.search, Trainings(middle_is_best)))


def test_with_a_race_and_one_seed_nobody_waits_either(default_params: Params) -> None:
    params = changed(default_params, population=10, generations=0, surgical_scan=False)
    trainings = Trainings(middle_is_best, order=lambda _: 0)
    search = new_search(params, BLOCKS)
    told = evolve(search, params, trainings)
    next(told)
    assert len(trainings.asked) == 1


def test_every_planned_candidate_is_evaluated_and_the_best_plan_wins(
    default_params: Params,
) -> None:
    params = changed(default_params, population=8, generations=4)
    result = whole_search(params, Trainings(middle_is_best))
    assert len(result.evaluated) == new_search(params, BLOCKS).planned_evaluations
    assert result.winner.plan.trained_blocks == ("middle",)
    assert result.winner.evaluation.fitness == pytest.approx(0.1)


def test_fitness_is_the_mean_over_all_training_seeds(default_params: Params) -> None:
    params = changed(default_params, training_seeds=[0, 7], generations=1, racing=False)
    trainings = Trainings(lambda task: curve(0.8 if task.seed == 7 else 0.4))
    result = whole_search(params, trainings)
    assert [evaluated.candidate.fitness for evaluated in result.evaluated] == [
        pytest.approx(0.4) for _ in result.evaluated
    ]
    assert [run.task.seed for run in result.evaluated[0].runs] == [0, 7]


def test_a_lucky_score_does_not_survive_confirmation(default_params: Params) -> None:
    params = changed(default_params, training_seeds=[0], confirm_top_k=4)
    lucky = {"stem": 3.0, "middle": 3.0, "top": 3.0, "head": 3.0}

    def answer(task: TrainingTask) -> LearningCurve:
        if dict(task.plan) == lucky:
            return curve(0.99 if task.seed == 0 else 0.1)
        return middle_is_best(task)

    result = whole_search(params, Trainings(answer))
    best_in_search = min(result.evaluated, key=lambda evaluated: evaluated.candidate.fitness)
    assert dict(best_in_search.candidate.plan) == lucky
    assert dict(result.winner.plan) != lucky


@pytest.mark.parametrize(
    ("confirm_on", "divisions"), [("resampled", [6, 7, 8, 9, 10]), ("validation", [None] * 5)]
)
def test_confirmation_uses_fresh_seeds_and_whole_splits_alike_for_all(
    default_params: Params, confirm_on: str, divisions: list[int | None]
) -> None:
    params = changed(
        default_params, training_seeds=[2, 5], folds=2, confirm_on=confirm_on, racing=False
    )
    result = whole_search(params, Trainings(middle_is_best))
    assert len(result.confirmations) > 1
    for runs in (confirmation.runs for confirmation in result.confirmations):
        assert [run.task.seed for run in runs] == [6, 7, 8, 9, 10]
        assert [run.task.division.resampled for run in runs] == divisions
        assert {(run.task.division.fold, run.task.division.folds) for run in runs} == {(0, 1)}


def test_the_best_recipe_is_always_confirmed_beside_the_top_k(default_params: Params) -> None:
    params = changed(default_params, population=8, confirm_top_k=2, generations=6)
    result = whole_search(params, Trainings(middle_is_best))
    assert [confirmation.recipe for confirmation in result.confirmations].count(True) == 1
    assert len({c.plan for c in result.confirmations}) == len(result.confirmations)
    assert 2 <= len(result.confirmations) <= 3
    tried = [evaluated for evaluated in result.evaluated if evaluated.candidate.recipe]
    best = min(tried, key=lambda evaluated: evaluated.candidate.rank_key)
    assert result.best_recipe.plan == best.candidate.plan
    assert result.best_recipe.name == best.candidate.recipe


def test_without_recipes_in_the_search_full_fine_tuning_is_the_one_to_beat(
    default_params: Params,
) -> None:
    params = changed(default_params, seed_recipes=False, surgical_scan=False)
    result = whole_search(params, Trainings(middle_is_best))
    assert result.best_recipe.candidate is None
    assert result.best_recipe.name == "full 1x"
    assert set(result.best_recipe.plan.values()) == {1.0}
    scanned = whole_search(changed(default_params, seed_recipes=False), Trainings(middle_is_best))
    assert scanned.best_recipe.name == "middle alone 5x"
    assert scanned.best_recipe.candidate is not None
    assert scanned.best_recipe.candidate.origin == "scan:middle"


def test_a_plan_that_comes_again_is_not_trained_again(default_params: Params) -> None:
    # With one block, genomes that differ in a threshold alone often decode to one plan.
    params = changed(default_params, population=4, elites=1, generations=8)
    trainings = Trainings(lambda task: curve(0.5))
    result = whole_search(params, trainings, ("only",))
    repeats = [evaluated for evaluated in result.evaluated if evaluated.repeat_of is not None]
    for repeat in repeats:
        first = result.evaluated[repeat.repeat_of or 0]
        assert first.candidate.plan == repeat.candidate.plan
        assert first.candidate.id < repeat.candidate.id
        assert first.repeat_of is None
    plans = {evaluated.candidate.plan for evaluated in result.evaluated}
    assert len(plans) == len(result.evaluated) - len(repeats)


def test_failed_plans_are_neither_confirmed_nor_returned(default_params: Params) -> None:
    def answer(task: TrainingTask) -> LearningCurve:
        if task.plan["stem"] is not None:
            return LearningCurve((), (), (), 10, "diverged", 0.1)
        return middle_is_best(task)

    result = whole_search(changed(default_params, population=10, elites=2), Trainings(answer))
    outcomes = {evaluated.runs[0].curve.outcome for evaluated in result.evaluated}
    assert outcomes == {"finished", "diverged"}
    for confirmation in result.confirmations:
        assert confirmation.recipe or confirmation.plan["stem"] is None
    assert result.winner.plan["stem"] is None


def test_a_search_in_which_everything_fails_ends_with_the_reason(default_params: Params) -> None:
    trainings = Trainings(lambda _: LearningCurve((), (), (), 10, "diverged", 0.1))
    with pytest.raises(SearchFailedError, match=r"diverged or ran out of memory.*base_lr"):
        whole_search(default_params.search, trainings)


def test_the_result_does_not_depend_on_the_order_in_which_runs_finish(
    default_params: Params,
) -> None:
    backwards = whole_search(default_params.search, Trainings(middle_is_best))
    forwards = whole_search(default_params.search, Trainings(middle_is_best, order=lambda _: 0))
    assert [evaluated.candidate for evaluated in backwards.evaluated] == [
        evaluated.candidate for evaluated in forwards.evaluated
    ]
    assert [confirmation.plan for confirmation in backwards.confirmations] == [
        confirmation.plan for confirmation in forwards.confirmations
    ]


def leading_by(points: list[float]) -> Trainings:
    """Plans that train the middle block alone lead every other one by this much, by fresh seed."""
    leads = {0: 0.05, **dict(enumerate(points, start=1))}

    def answer(task: TrainingTask) -> LearningCurve:
        only_middle = task.plan.trained_blocks == ("middle",)
        # Another plan than the recipe's own, which also trains the middle alone in four blocks.
        led = only_middle and task.plan["middle"] != 5.0
        return curve(0.8 + leads[task.seed] if led else 0.8)

    return Trainings(answer)


@pytest.mark.parametrize(
    ("points", "recipe_wins"),
    [
        ([0.01, 0.03, 0.02, 0.02, 0.02], False),
        ([0.03, -0.02, 0.02, 0.01, -0.02], True),
        ([0.01] * 5, False),
    ],
)
def test_a_lead_within_a_standard_error_leaves_the_win_to_the_recipe(
    default_params: Params, points: list[float], recipe_wins: bool
) -> None:
    params = changed(
        default_params, population=30, generations=0, racing=False, surgical_scan=False
    )
    result = whole_search(params, leading_by(points))
    best = result.confirmations[0]
    assert not best.recipe
    assert best.lead_over(result.best_recipe)[0] == pytest.approx(sum(points) / 5)
    assert result.winner.recipe is recipe_wins
    assert result.winner is (result.best_recipe if recipe_wins else best)


def test_racing_gives_no_more_than_two_fresh_seeds_to_a_plan_that_does_not_lead(
    default_params: Params,
) -> None:
    """The third fresh seed would have turned the mean."""
    params = changed(default_params, population=30, generations=0, surgical_scan=False)
    result = whole_search(params, leading_by([-0.01, -0.01, 0.3, 0.3, 0.3]))
    dropped = [confirmation for confirmation in result.confirmations if confirmation.dropped]
    assert dropped
    assert result.confirmations[-len(dropped) :] == tuple(dropped)
    # Of five plans three are dropped after the first, and one after the second.
    assert sorted(len(confirmation.runs) for confirmation in dropped) == [1, 1, 1, 2, 2]
    assert sum(confirmation.plan["middle"] == 5.97 for confirmation in dropped) == 1
    assert result.winner is result.best_recipe
    assert len(result.best_recipe.runs) == 2
    in_full = whole_search(
        params.model_copy(update={"racing": False}), leading_by([-0.01, -0.01, 0.3, 0.3, 0.3])
    )
    assert not any(confirmation.dropped for confirmation in in_full.confirmations)


def test_a_plan_that_leads_after_two_seeds_gets_all_of_them(default_params: Params) -> None:
    params = changed(default_params, population=30, generations=0, surgical_scan=False)
    result = whole_search(params, leading_by([0.02, 0.01, 0.02, 0.02, 0.02]))
    assert not result.winner.recipe
    assert len(result.winner.runs) == len(result.best_recipe.runs) == 5


def test_racing_goes_on_with_the_best_of_several_leaders_alone(default_params: Params) -> None:
    params = changed(default_params, population=30, generations=0, surgical_scan=False)

    def answer(task: TrainingTask) -> LearningCurve:
        # No recipe trains just these two.
        leads = set(task.plan.frozen_blocks) == {"middle"}
        return curve(0.9 - (task.plan["stem"] or 0.0) / 1000 if leads else 0.8)

    result = whole_search(params, Trainings(answer))
    leaders = [confirmation for confirmation in result.confirmations if not confirmation.recipe]
    assert len(leaders) > 1
    assert [len(leader.runs) for leader in leaders] == [5, 2, 1, 1, 1]
    both = [set(leader.plan.frozen_blocks) == {"middle"} for leader in leaders]
    assert both == [True, True, False, False, False]
    assert len(result.best_recipe.runs) == 5


@pytest.mark.parametrize(
    ("training_seeds", "fresh"),
    [([0], [5, 2, 1, 1, 1]), ([0, 1], [5, 1, 1]), ([0, 1, 2], [5, 1, 1])],
)
def test_racing_picks_the_plan_to_confirm_by_all_seeds_of_the_search_and_fresh_ones(
    default_params: Params, training_seeds: list[int], fresh: list[int]
) -> None:
    params = changed(
        default_params,
        population=40,
        generations=0,
        training_seeds=training_seeds,
        racing=True,
        surgical_scan=False,
    )
    names: list[str] = []

    def answer(task: TrainingTask) -> LearningCurve:
        if set(task.plan.frozen_blocks) != {"middle"}:  # no recipe freezes it alone
            return curve(0.5)
        if str(task.plan) not in names:
            names.append(str(task.plan))
        first = names[0] == str(task.plan)
        lucky = task.seed in training_seeds and not first
        return curve(0.9 + 0.02 * first + (0.03 if lucky and len(training_seeds) == 1 else 0.0))

    result = whole_search(params, Trainings(answer))
    plans = [confirmation for confirmation in result.confirmations if not confirmation.recipe]
    assert [len(plan.runs) for plan in plans] == fresh
    assert str(plans[0].plan) == names[0], "not one that was lucky in the search"
    assert len(result.best_recipe.runs) == 5
    assert result.winner is plans[0]


def test_a_surgical_scan_comes_first_runs_in_full_and_finds_the_best_block(
    default_params: Params,
) -> None:
    params = changed(default_params, surgical_scan=True)
    result = whole_search(params, Trainings(middle_is_best))
    assert len(result.evaluated) == new_search(params, BLOCKS).planned_evaluations
    scan = [evaluated.candidate for evaluated in result.evaluated[: len(BLOCKS)]]
    assert [single.origin for single in scan] == [f"scan:{block}" for block in BLOCKS]
    assert {single.evaluation.outcome for single in scan if single.evaluation} == {"finished"}
    assert min(scan, key=lambda single: single.rank_key).origin == "scan:middle"
    assert result.best_recipe.name.startswith(("full", "middle", "linear"))
