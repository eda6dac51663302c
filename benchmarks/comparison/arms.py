"""The arms of a comparison: what each searches, and what it pays.

All train through a :class:`ChargedRuns` of their own, which charges each run its CPU seconds,
whoever trained it first: arms share computations, and no costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.earlier import confirmation as earlier_confirmation
from benchmarks.earlier import racing as earlier
from biotune.evolution import BioTune, Candidate, Evaluation, FineTunePlan, decode, recipe_grid
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.evolving.confirmation import Confirmation, Contender, confirm, contenders
from pipeline.evolving.loop import evolve, new_search, search_result
from pipeline.evolving.summary import BRED, count_bred, first_with
from pipeline.params import SearchParams
from pipeline.trials.machine import training_settings
from pipeline.trials.runs import Runs, TrainingRun

TODAY_POPULATION, TODAY_ELITES = 6, 2
TODAY_EPOCHS, TODAY_PATIENCE, TODAY_TOP = 8, 3, 3
"""The earlier search as its params file had it; all else is the evaluator's."""

REPEATED = 6
"""Candidates of generation 0 that may get a further seed at a time."""

FIRST_REPEAT = 1000
"""Training seeds from here on are for repetition: no search, confirmation or test has them."""

CONFIRMED_RECIPES = 3


class ChargedRuns:
    """Training runs with their cost.

    A task that is answered a second time costs nothing more, as by the evaluation store, unless it
    had been stopped and went further: then the whole of it was trained anew.

    Args:
        runs: train, or know from another arm; with CPU seconds in their curves.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._epochs: dict[TrainingTask, int] = {}
        self._charges: list[float] = []

    def submit(self, task: TrainingTask) -> None:
        """Ask for a task that is not being waited for already."""
        self._runs.submit(task)

    def next_finished(self) -> TrainingRun:
        """Wait for any of the tasks that were asked for."""
        run = self._runs.next_finished()
        whole, epochs = replace(run.task, must_reach=()), len(run.curve.validation_score)
        if epochs > self._epochs.get(whole, -1):
            self._epochs[whole] = epochs
            self._charges.append(run.curve.seconds)
        return run

    @property
    def seconds(self) -> float:
        """CPU seconds so far; the same in whichever order the runs ended."""
        return math.fsum(self._charges)


@dataclass(frozen=True)
class Comparison:
    """What all arms of a repetition have in common.

    Attributes:
        section: of the params file, with the repetition's seed; one fold, with recipes.
        blocks: of the network in forward order, the head last.
        budget: CPU seconds that the evolution of ``screened`` took; unused by that arm.
        today_epochs: of each run of the earlier search.
    """

    section: SearchParams
    blocks: tuple[str, ...]
    budget: float = math.inf
    today_epochs: int = TODAY_EPOCHS


@dataclass(frozen=True)
class Found:
    """What an arm found.

    Attributes:
        plan: the winner's.
        origin: as of :class:`~biotune.evolution.Candidate`.
        generation: in which the winner was bred; 0 of what was not.
        confirmed, recipe_confirmed: validation score of the winner and of the best recipe, from
            fresh seeds.
        candidates: how many were scored.
        bred_elites: how many bred plans were among the elites when a generation ended.
        evolution_seconds, confirmation_seconds: CPU seconds of the training runs.
    """

    plan: FineTunePlan
    origin: str
    generation: int
    confirmed: float
    recipe_confirmed: float
    candidates: int
    bred_elites: int
    evolution_seconds: float
    confirmation_seconds: float


def screened(comparison: Comparison, runs: ChargedRuns) -> Found:
    """The search of the params file, and its confirmation."""
    section, blocks = comparison.section, comparison.blocks
    search = new_search(section, blocks)
    evaluated = list(evolve(search, section, runs))
    evolution = runs.seconds
    confirmed = list(confirm(contenders(search, section, blocks), section, runs))
    result = search_result(evaluated, confirmed)
    return _found(result.winner, result.best_recipe, search, evolution, runs)


def today(comparison: Comparison, runs: ChargedRuns) -> Found:
    """The search of commit 4af523c, which goes on breeding until the budget is spent.

    No batch is begun (the trials of the elites, or the offspring) once its CPU seconds reach the
    budget; so it may spend up to one batch more than ``screened``, and never less while there is
    something left to breed.
    """
    section = comparison.section
    settings = replace(
        training_settings(section), epochs=comparison.today_epochs, patience=TODAY_PATIENCE
    )
    search = BioTune(
        comparison.blocks,
        population=TODAY_POPULATION,
        elites=TODAY_ELITES,
        generations=1000,
        seed=section.seed,
        head=section.head,
        surgical_scan=True,
    )
    for _ in earlier.evolve(
        search, 0, settings, runs, may_go_on=lambda: runs.seconds < comparison.budget
    ):
        pass
    evolution = runs.seconds
    fresh = range(1, 1 + earlier_confirmation.CONFIRMATION_SEEDS)
    winner, recipe = earlier_confirmation.confirm(search, TODAY_TOP, settings, fresh, runs)
    return _found(winner, recipe, search, evolution, runs)


def generation_0(comparison: Comparison, runs: ChargedRuns) -> Found:
    """The screened search without a generation bred, and the seconds that this saves in repetition.

    Scan and initial population are those of ``screened``. Then, while there are CPU seconds left of
    what the whole evolution took there, the best :data:`REPEATED` plans by their mean score so far
    get one more training seed each, on the images as they were prepared; and again, so that a
    lucky one loses its place, and another gets its seed. A round takes as many of them, the best
    first, as the time left allows by what their runs have taken; the last begun may exceed it. The
    best recipe and the best plans by mean score are confirmed as the winner of any search is.
    """
    section = comparison.section.model_copy(update={"generations": 0})
    search = new_search(section, comparison.blocks)
    curves: dict[FineTunePlan, list[LearningCurve]] = {}
    candidates: dict[FineTunePlan, Candidate] = {}
    for told in sorted(evolve(search, section, runs), key=lambda told: told.candidate.id):
        candidates.setdefault(told.candidate.plan, told.candidate)
        curves.setdefault(told.candidate.plan, [run.curve for run in told.runs])

    def ranked() -> list[Candidate]:
        means = [
            replace(candidate, evaluation=_mean(candidate.evaluation, curves[plan]))
            for plan, candidate in candidates.items()
        ]
        return sorted(means, key=lambda candidate: candidate.rank_key)

    while chosen := _affordable(ranked(), curves, comparison.budget - runs.seconds):
        for plan in chosen:
            seed = FIRST_REPEAT + len(curves[plan])
            runs.submit(TrainingTask(plan, seed, training_settings(section)))
        finished = [runs.next_finished() for _ in chosen]
        for run in finished:
            curves[run.task.plan].append(run.curve)
    evolution = runs.seconds
    ranking = [candidate for candidate in ranked() if candidate.finished]
    recipe = next(candidate for candidate in ranked() if candidate.recipe is not None)
    top = [candidate for candidate in ranking[: section.confirm_top_k] if candidate.id != recipe.id]
    chosen_for_confirmation = [_contender(recipe, True), *(_contender(c, False) for c in top)]
    confirmed = list(confirm(chosen_for_confirmation, section, runs))
    result = search_result([], confirmed)
    return _found(result.winner, result.best_recipe, search, evolution, runs)


def best_recipe(comparison: Comparison, runs: ChargedRuns) -> Found:
    """All recipes at all rates of the grid, one training seed each; the best of them confirmed.

    The best :data:`CONFIRMED_RECIPES` get the five fresh seeds of a confirmation, whatever that
    takes, and the best by their mean is the winner.
    """
    section = comparison.section
    settings, seed = training_settings(section), section.training_seeds[0]
    names = {
        decode(recipe.genome, comparison.blocks, section.head): recipe.name
        for recipe in recipe_grid(comparison.blocks, section.head)
    }
    for plan in names:
        runs.submit(TrainingTask(plan, seed, settings))
    scores = {run.task.plan: evaluate([run.curve]) for run in (runs.next_finished() for _ in names)}
    evolution = runs.seconds
    order = sorted(names, key=lambda plan: scores[plan].rank_key)
    top = [Contender(names[plan], plan, candidate=None, recipe=True) for plan in order]
    in_full = section.model_copy(update={"racing": False})
    confirmed = list(confirm(top[:CONFIRMED_RECIPES], in_full, runs))
    winner = search_result([], confirmed).confirmations[0]
    found = _found(winner, winner, None, evolution, runs)
    return replace(found, candidates=len(names))


ARMS: Final[dict[str, Callable[[Comparison, ChargedRuns], Found]]] = {
    "screened": screened,
    "today": today,
    "generation 0": generation_0,
    "best recipe": best_recipe,
}
"""In the order in which they are run: the first decides the budget of the others."""


def _found(
    winner: Confirmation | earlier_confirmation.Confirmation,
    recipe: Confirmation | earlier_confirmation.Confirmation,
    search: BioTune | None,
    evolution: float,
    runs: ChargedRuns,
) -> Found:
    """What an arm found, whose evolution took so many of the seconds that its runs took."""
    told, elite_ids = (search.history, search.elite_ids) if search else ([], set())
    first = first_with(winner.plan, told)
    return Found(
        plan=winner.plan,
        origin=first.origin if first else f"recipe:{winner.name}",
        generation=first.generation if first and first.origin in BRED else 0,
        confirmed=1 - winner.evaluation.fitness,
        recipe_confirmed=1 - recipe.evaluation.fitness,
        candidates=len(told),
        bred_elites=count_bred(told, elite_ids)[1],
        evolution_seconds=evolution,
        confirmation_seconds=runs.seconds - evolution,
    )


def _contender(candidate: Candidate, is_recipe: bool) -> Contender:
    name = str(candidate.recipe) if is_recipe else f"candidate {candidate.id}"
    return Contender(name, candidate.plan, candidate, recipe=is_recipe)


def _mean(told: Evaluation | None, curves: Sequence[LearningCurve]) -> Evaluation | None:
    """Of all seeds; what a search says of a run that failed or was stopped stays."""
    if told is None or told.outcome != "finished":
        return told
    return evaluate(curves)


def _affordable(
    ranking: Sequence[Candidate], curves: dict[FineTunePlan, list[LearningCurve]], left: float
) -> list[FineTunePlan]:
    """The best plans that may have one more seed, as far as the seconds left go."""
    chosen: list[FineTunePlan] = []
    for candidate in ranking[:REPEATED]:
        if left <= 0 or not candidate.finished:
            break
        its_curves = curves[candidate.plan]
        left -= math.fsum(curve.seconds for curve in its_curves) / len(its_curves)
        chosen.append(candidate.plan)
    return chosen
