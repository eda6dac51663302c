"""Who is confirmed, who wins, and by how much: on the same seeds and images, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from biotune.evolution import BioTune
from biotune.finetuning.fitness import evaluate
from biotune.plan import Evaluation
from pipeline.evolving.confirmation import Confirmation, contenders
from pipeline.evolving.loop import SearchResult
from pipeline.params import Params
from pipeline.trials.runs import TrainingRun
from tests.pipeline.trainings import BLOCKS, curve, task

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
