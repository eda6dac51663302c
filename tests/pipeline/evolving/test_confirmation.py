"""Who is confirmed, who wins, and by how much: on the same seeds and images, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from biotune.evolution import BioTune
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.learning_curve import LearningCurve
from biotune.plan import Evaluation
from pipeline.evolving.confirmation import Confirmation, Contender, confirm, contenders, most_runs
from pipeline.evolving.loop import SearchResult
from pipeline.params import Params, SearchParams
from pipeline.trials.runs import TrainingRun
from tests.pipeline.trainings import BLOCKS, Trainings, curve, task

SCORES = np.array([0.5, 0.9, 0.6, 0.8, 0.7])
"""Of the recipe: seeds differ far more than plans do."""

UNEVEN = np.array([-1.0, -1.0, 0.0, 1.0, 1.0])
"""Has mean 0 and standard deviation 1."""


def confirmed(scores: Sequence[float], *, recipe: bool = False) -> Confirmation:
    tasks = [task({**dict.fromkeys(BLOCKS), "head": 1.0 + recipe}, n) for n in range(len(scores))]
    runs = [
        TrainingRun(asked, curve(score), from_store=False)
        for asked, score in zip(tasks, scores, strict=True)
    ]
    return Confirmation(
        name="full 1x" if recipe else "candidate 7",
        plan=tasks[0].plan,
        candidate=None,
        recipe=recipe,
        evaluation=evaluate([run.curve for run in runs]),
        runs=tuple(runs),
    )


def test_the_lead_is_over_the_pairs_and_so_is_its_standard_error() -> None:
    recipe = confirmed(SCORES, recipe=True)
    differences = 0.02 + 0.01 * UNEVEN
    lead, error = confirmed(SCORES + differences).lead_over(recipe)
    assert lead == pytest.approx(0.02)
    assert error == pytest.approx(0.01 / math.sqrt(5))


def test_the_lead_is_over_the_seeds_that_both_have() -> None:
    recipe = confirmed(SCORES, recipe=True)
    lead, error = confirmed(SCORES[:2] + np.array([0.01, 0.03])).lead_over(recipe)
    assert lead == pytest.approx(0.02)
    assert error == pytest.approx(0.01)


@pytest.mark.parametrize(("errors", "wins"), [(0.9, False), (1.1, True)])
def test_a_plan_wins_if_it_leads_by_more_than_one_standard_error(errors: float, wins: bool) -> None:
    recipe = confirmed(SCORES, recipe=True)
    differences = 0.02 * (UNEVEN + errors / math.sqrt(5))
    plan = confirmed(SCORES + differences)
    assert SearchResult((), (plan, recipe)).winner is (plan if wins else recipe)


def test_a_plan_that_racing_dropped_never_wins() -> None:
    recipe = confirmed(SCORES, recipe=True)
    dropped = confirmed(SCORES[:2] + 0.09)
    assert dropped.lead_over(recipe)[0] == pytest.approx(0.09)
    for order in ((recipe, dropped), (dropped, recipe)):
        assert SearchResult((), order).winner is recipe


def test_only_finished_candidates_are_confirmed_however_few_they_are(
    default_params: Params,
) -> None:
    search = BioTune(BLOCKS, population=4, generations=0, elites=1)
    evaluations = [
        Evaluation(0.3),
        Evaluation(0.1, outcome="stopped"),
        Evaluation(0.2),
        Evaluation(0.05, outcome="stopped"),
    ]
    for candidate, evaluation in zip(search.ask(), evaluations, strict=True):
        search.tell(candidate, evaluation)
    params = default_params.search.model_copy(update={"confirm_top_k": 4})
    assert [plan.name for plan in contenders(search, params, BLOCKS)] == ["full 1x", "candidate 2"]


def test_with_two_folds_the_best_recipe_is_that_of_the_fold_which_all_share(
    default_params: Params,
) -> None:
    search = BioTune(BLOCKS, population=8, generations=1, elites=1, folds=2)
    first = search.ask()
    names = [candidate.origin for candidate in first[:4]]
    assert names[:2] == ["recipe:full 1x", "recipe:full 3x"]
    for candidate, fitness in zip(first, [0.3, 0.2, 0.4, 0.5, 0.1, 0.6, 0.6, 0.6], strict=True):
        search.tell(candidate, fitness)  # no recipe lasts
    while not search.done:
        for candidate in search.ask():
            search.tell(candidate, 0.7)
    recipe = contenders(search, default_params.search, BLOCKS)[0]
    assert (recipe.name, recipe.recipe) == ("full 3x", True)


# --- halving

RECIPE = Contender("full 1x", task(dict.fromkeys(BLOCKS, 1.0)).plan, None, recipe=True)


def top_of_a_search(fitness: Sequence[float]) -> list[Contender]:
    """The recipe, and plans with these scores from the search; plan n trains the head at n + 1."""
    candidate = BioTune(BLOCKS, population=2, elites=1).ask()[0]
    plans = [task({**dict.fromkeys(BLOCKS), "head": n + 1.0}).plan for n in range(len(fitness))]
    return [
        RECIPE,
        *(
            Contender(
                f"candidate {n}",
                plan,
                replace(candidate, id=n, plan=plan, evaluation=Evaluation(score)),
                recipe=False,
            )
            for n, (plan, score) in enumerate(zip(plans, fitness, strict=True))
        ),
    ]


def halved(
    params: Params,
    searched: Sequence[float],
    fresh: Callable[[int, int], float],
    *,
    recipe: float,
    **changes: object,
) -> tuple[dict[str, Confirmation], Trainings, SearchParams]:
    """What a race confirms; ``fresh`` is a plan's score by its number and its n-th fresh seed."""
    section = params.search.model_copy(
        update={"racing": True, "training_seeds": [0], "confirm_top_k": len(searched), **changes}
    )

    def answer(asked: TrainingTask) -> LearningCurve:
        if asked.plan == RECIPE.plan:
            return curve(recipe)
        number = round(asked.plan["head"] or 0.0) - 1
        return curve(fresh(number, asked.seed - max(section.training_seeds)))

    trainings = Trainings(answer)
    given = list(confirm(top_of_a_search(searched), section, trainings))
    assert len({confirmation.name for confirmation in given}) == len(given) == len(searched) + 1
    return {confirmation.name: confirmation for confirmation in given}, trainings, section


@pytest.mark.parametrize(
    ("plans", "seeds"),
    [
        (1, [2]),
        (2, [2, 1]),
        (3, [2, 1, 1]),
        (6, [2, 2, 2, 1, 1, 1]),
        (8, [3, 3, 2, 2, 1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("leads", [False, True])
def test_after_each_fresh_seed_the_worse_half_is_dropped_and_a_last_one_that_leads_gets_all(
    default_params: Params, plans: int, seeds: list[int], leads: bool
) -> None:
    done, trainings, section = halved(
        default_params,
        [0.1] * plans,
        lambda number, _: 0.8 - 0.01 * number,
        recipe=0.7 if leads else 0.9,
    )
    last = 5 if leads else seeds[0]
    by_plan = [len(done[f"candidate {number}"].runs) for number in range(plans)]
    assert by_plan == [last, *seeds[1:]]
    assert len(done["full 1x"].runs) == last
    assert [done[f"candidate {n}"].dropped for n in range(plans)] == [
        not leads,
        *[True] * (plans - 1),
    ]
    assert len(set(trainings.asked)) == len(trainings.asked) == sum(by_plan) + last
    assert len(trainings.asked) <= most_runs(section)
    assert (len(trainings.asked) == most_runs(section)) == leads
    first = [run.task.seed for run in done["candidate 0"].runs]
    assert first == list(range(1, 1 + last))
    assert [run.task.seed for run in done["full 1x"].runs] == first


@pytest.mark.parametrize(("plans", "runs"), [(1, 10), (2, 11), (3, 12), (6, 17), (8, 21), (32, 67)])
def test_the_most_runs_are_those_of_a_last_plan_that_leads(
    default_params: Params, plans: int, runs: int
) -> None:
    section = default_params.search.model_copy(update={"confirm_top_k": plans, "racing": True})
    assert most_runs(section) == runs
    assert most_runs(section.model_copy(update={"racing": False})) == 5 * (plans + 1)
    _, trainings, _ = halved(default_params, [0.1] * plans, lambda *_: 0.8, recipe=0.7)
    assert len(trainings.asked) == runs


def test_plans_are_halved_by_the_mean_over_the_searchs_seeds_and_fresh_ones(
    default_params: Params,
) -> None:
    """Plan 0 was lucky in the search, plan 1 is with its first fresh seed, plan 2 is the best."""
    searched = [0.02, 0.30, 0.10, 0.12]
    scores = [[0.7, 0.7, 0.7], [0.95, 0.6, 0.6], [0.9, 0.9, 0.9], [0.9, 0.85, 0.85]]
    done, _, _ = halved(
        default_params, searched, lambda n, seed: scores[n][min(seed, 3) - 1], recipe=0.5
    )
    assert [len(done[f"candidate {n}"].runs) for n in range(4)] == [1, 1, 5, 2]
    # With three seeds in the search, one fresh seed weighs a quarter: .02·3 + .3 < .1·3 + .1.
    done, _, _ = halved(
        default_params,
        searched,
        lambda n, seed: scores[n][min(seed, 3) - 1],
        recipe=0.5,
        training_seeds=[0, 1, 2],
    )
    assert [len(done[f"candidate {n}"].runs) for n in range(4)] == [2, 1, 5, 1]


def test_a_plan_that_fails_is_dropped_first(default_params: Params) -> None:
    failed = LearningCurve((), (), (), 10, "diverged", 0.1)
    section = default_params.search.model_copy(update={"racing": True, "training_seeds": [0]})
    trainings = Trainings(lambda asked: failed if asked.plan["head"] == 1.0 else curve(0.5))
    top = top_of_a_search([0.01, 0.4, 0.5])
    top[0] = replace(top[0], plan=task(dict.fromkeys(BLOCKS, 3.0)).plan)
    given = {its.name: its for its in confirm(top, section, trainings)}
    assert given["candidate 0"].evaluation.outcome == "diverged"
    assert [len(given[f"candidate {n}"].runs) for n in range(3)] == [1, 2, 1]


def test_without_racing_all_get_five_fresh_seeds(default_params: Params) -> None:
    done, trainings, section = halved(
        default_params, [0.1] * 6, lambda number, _: 0.5, recipe=0.9, racing=False
    )
    assert {len(confirmation.runs) for confirmation in done.values()} == {5}
    assert len(trainings.asked) == most_runs(section) == 35
