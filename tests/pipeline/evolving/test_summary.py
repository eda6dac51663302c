"""What a search says of its evolution, held against who was really asked for, bred and ranked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from biotune.evolution import BioTune
from biotune.finetuning.fitness import TrainingTask
from biotune.plan import FineTunePlan
from pipeline.evolving.loop import SearchResult, new_search
from pipeline.evolving.summary import EvolutionSummary, early_end, evolution_summary
from pipeline.params import Params
from tests.pipeline.trainings import BLOCKS, Trainings, curve, whole_search

Score = Callable[[FineTunePlan], float]


def searched(
    default_params: Params, score: Score, **changes: Any
) -> tuple[BioTune, SearchResult, EvolutionSummary]:
    """A whole search of plans whose score is a function of them alone, without noise."""

    def answer(task: TrainingTask) -> Any:
        return curve(score(task.plan))

    params = default_params.search.model_copy(update={"racing": False, **changes})
    search = new_search(params, BLOCKS)
    result = whole_search(params, Trainings(answer), search=search)
    return search, result, evolution_summary(search, result)


def off_the_grid(plan: FineTunePlan) -> float:
    """Best at rates that neither recipes nor the scan have."""
    wanted = {"stem": 0.4, "middle": 1.7, "top": 7.0, "head": 2.2}
    return 0.9 - sum(
        0.2 if plan[block] is None else 0.02 * abs(plan[block] - rate)  # type: ignore[operator]
        for block, rate in wanted.items()
    )


@pytest.mark.parametrize("screening", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_a_bred_winner_is_told_with_generation_parents_and_operator(
    default_params: Params, screening: bool, seed: int
) -> None:
    search, result, summary = searched(
        default_params, off_the_grid, screening=screening, seed=seed, generations=4
    )
    by_id = {candidate.id: candidate for candidate in search.history}
    winner = result.winner.candidate
    assert winner is not None
    assert winner.generation == summary.winner_generation > 0
    parents = [f"{parent} ({by_id[parent].origin})" for parent in winner.parents]
    of_whom, operator = {
        "offspring": (f"candidates {' and '.join(parents)}", "reproduction"),
        "exploitation": (f"candidate {parents[0]}", "exploitation"),
    }[winner.origin]
    assert summary.winner_origin == (
        f"bred in generation {winner.generation}, of {of_whom}, by {operator}"
    )
    assert summary.bred_elites > 0
    assert summary.lines()[:2] == (
        f"Where the winner came from: {summary.winner_origin}.",
        f"Bred: {summary.bred} candidates; elites among them: {summary.bred_elites}.",
    )


def only(**rates: float) -> Score:
    """These rates in the named blocks and all else frozen, or it is worse."""
    wanted = FineTunePlan({block: rates.get(block) for block in BLOCKS})
    return lambda plan: 0.9 if plan == wanted else 0.5


@pytest.mark.parametrize(
    ("score", "changes", "expected"),
    [
        (only(**dict.fromkeys(BLOCKS, 1.0)), {}, "recipe full 1x"),
        (only(**dict.fromkeys(BLOCKS, 1.0)), {"seed_recipes": False, "surgical_scan": False}, None),
        (only(top=5.0), {}, "scan, top alone 5x"),
        (
            lambda plan: (
                0.9 - 0.1 * len(plan.frozen_blocks) if {5.0, None} >= set(plan.values()) else 0.1
            ),
            {"seed_recipes": False, "generations": 0},
            "combination of candidates 0 (scan:stem), 1 (scan:middle) and 2 (scan:top)",
        ),
    ],
)
def test_a_winner_that_was_not_bred_is_told_by_what_it_is(
    default_params: Params, score: Score, changes: dict[str, Any], expected: str | None
) -> None:
    summary = searched(default_params, score, **changes)[2]
    assert summary.winner_origin == (expected or "recipe full 1x, not tried in the search")
    assert summary.winner_generation == 0


def test_a_random_genome_of_the_initial_population_is_told_as_such(default_params: Params) -> None:
    changes = {"seed_recipes": False, "surgical_scan": False, "generations": 0, "population": 12}
    search, result, summary = searched(default_params, off_the_grid, **changes)
    assert result.winner.candidate is not None
    assert summary.winner_origin == "random in generation 0"
    assert (summary.bred, summary.bred_elites) == (0, 0)
    assert search.elite_ids == {candidate.id for candidate in search.ranked[: search.elites]}


def test_a_recipe_that_took_a_childs_place_was_not_bred(default_params: Params) -> None:
    """Of recipes all tried in the search, the winner is the one that generation 0 had not."""
    search = searched(default_params, off_the_grid, seed=4)[0]
    later = [c for c in search.history if c.generation and c.origin.startswith("recipe:")]
    assert later, "choose another seed"
    chosen = later[0].plan
    _, _, summary = searched(
        default_params, lambda plan: 0.9 if plan == chosen else off_the_grid(plan) - 1e-9, seed=4
    )
    assert summary.winner_origin == (
        f"recipe {later[0].recipe}, tried in generation {later[0].generation}"
    )
    assert summary.winner_generation == later[0].generation


def test_a_rescored_elite_is_told_by_how_it_was_bred(default_params: Params) -> None:
    """With two folds the last generation ranks elites under ids of their own."""
    search, result, summary = searched(
        default_params, off_the_grid, folds=2, generations=5, screening=False, seed=5
    )
    winner = result.winner.candidate
    assert winner is not None
    assert winner.origin == "rescore", "choose another seed"
    first = next(c for c in search.history if c.plan == winner.plan)
    assert first.origin in {"exploitation", "offspring"}
    assert first.generation == summary.winner_generation < winner.generation
    assert summary.winner_origin.startswith(f"bred in generation {first.generation}, of candidate")
    plans = {c.plan for c in search.history if c.origin in {"exploitation", "offspring"}}
    assert summary.bred == len(plans)


@pytest.mark.parametrize("screening", [True, False])
def test_bred_candidates_are_counted_by_plan(default_params: Params, screening: bool) -> None:
    search, result, summary = searched(default_params, off_the_grid, screening=screening)
    bred = [
        told.candidate
        for told in result.evaluated
        if told.candidate.origin in {"exploitation", "offspring"} and told.repeat_of is None
    ]
    assert summary.bred == len(bred)
    assert summary.bred_elites == sum(candidate.id in search.elite_ids for candidate in bred)


@pytest.mark.parametrize(("gain", "generation"), [(0.0, None), (1.0, 0), (0.02, 2)])
def test_a_search_that_ended_early_says_after_which_generation_and_why(
    default_params: Params, gain: float, generation: int | None
) -> None:
    search, _, summary = searched(
        default_params, off_the_grid, generations=6, min_expected_gain=gain
    )
    assert summary.expected_gain_left is not None
    points = f"{100 * summary.expected_gain_left:.2f} points"
    assert summary.lines()[2] == (
        f"Left to gain: {points}, expected of the best plan that was not trained."
    )
    if generation is None:
        assert early_end(search) is None
        assert len(search.history) == search.planned_evaluations
        return
    assert early_end(search) == (
        f"ended after generation {generation} of 6: the model expects at most {points} more from "
        f"a plan that was not trained (search.min_expected_gain {gain:g})"
    )
    assert len(search.history) < search.planned_evaluations


def test_without_a_model_nobody_knows_what_is_left(default_params: Params) -> None:
    search, _, summary = searched(default_params, off_the_grid, screening=False)
    assert summary.expected_gain_left is None
    assert summary.lines()[2] == "Left to gain: unknown, because search.screening is off."
    assert early_end(search) is None


def test_a_gain_that_is_too_small_after_the_last_generation_ended_nothing_early(
    default_params: Params,
) -> None:
    search, _, _ = searched(default_params, off_the_grid, generations=0, min_expected_gain=1.0)
    assert early_end(search) is None
