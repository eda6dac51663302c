"""Who really is best: the top of a search and the best recipe, on fresh seeds and fresh divisions
of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from biotune.evolution.candidate import Candidate
from biotune.evolution.genome import decode
from biotune.evolution.optimizer import BioTune
from biotune.evolution.recipes import recipes
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation, FineTunePlan
from pipeline.params import SearchParams
from pipeline.racing import cost_rank
from pipeline.runs import NextTasks, Runs, TrainingRun, follow

CONFIRMATION_SEEDS = 5
"""Fresh training seeds for each plan that is confirmed."""

CLEAR_LEAD = 2.0
"""Standard errors by which a plan must lead the best recipe to win. One is not enough: the best of
several plans that are no better leads by as much every other time."""

SEEDS_BEFORE_DROPPING = 2
"""Fresh seeds after which racing gives no more to a plan that does not lead the recipe."""


@dataclass(frozen=True)
class Confirmation:
    """A plan's score from fresh seeds, and fresh divisions of the images: no lucky one.

    Attributes:
        name: ``candidate 12``, or the recipe's name.
        plan: the plan.
        candidate: the candidate it came from; None for a recipe that the search did not try.
        recipe: whether it is the best recipe, which every winner is held against.
        evaluation: mean over its fresh seeds.
        runs: one for each fresh seed; fewer if racing dropped the plan, or if it is the recipe and
            racing dropped all others.
    """

    name: str
    plan: FineTunePlan
    candidate: Candidate | None
    recipe: bool
    evaluation: Evaluation
    runs: tuple[TrainingRun, ...]

    @property
    def dropped(self) -> bool:
        """Whether it did not get all seeds, and so cannot win."""
        return not self.recipe and len(self.runs) < CONFIRMATION_SEEDS

    def lead_over(self, other: Confirmation) -> tuple[float, float]:
        """Mean difference in validation accuracy, on the same seeds and images; its standard error.

        Over the seeds that both have. Both must be finished.
        """
        pairs = zip(self.runs, other.runs, strict=False)
        differences = np.array([_accuracy(own) - _accuracy(its) for own, its in pairs])
        spread = differences.std(ddof=1) / np.sqrt(len(differences))
        return float(differences.mean()), float(spread)


@dataclass(frozen=True)
class Contender:
    """A plan that is to be confirmed; attributes as of :class:`Confirmation`."""

    name: str
    plan: FineTunePlan
    candidate: Candidate | None
    recipe: bool


def contenders(search: BioTune, params: SearchParams) -> list[Contender]:
    """The best recipe, first, and the best distinct plans of the search, which may include it."""
    best_with: dict[FineTunePlan, Candidate] = {}
    for one in search.ranked:
        if one.finished:
            best_with.setdefault(one.plan, one)
    recipe = _best_recipe(search)
    top = list(best_with.values())[: params.confirm_top_k]
    others = [one for one in top if one.plan != recipe.plan]
    return [recipe, *(Contender(f"candidate {one.id}", one.plan, one, False) for one in others)]


def confirm(
    found: Sequence[Contender],
    params: SearchParams,
    settings: TrainingSettings,
    runs: Runs,
    *,
    racing: bool,
) -> Iterator[Confirmation]:
    """Train contenders on fresh seeds, and yield each as soon as it is confirmed.

    Args:
        found: the best recipe first; see :func:`contenders`.
        params: the ``search`` section.
        settings: of every run.
        runs: trains.
        racing: give no more than two seeds to a plan that by then does not lead the recipe: it
            would hardly come to lead clearly. If none leads, the recipe gets no more either.
    """
    fresh = max(params.training_seeds) + 1
    tasks = {
        one: [
            TrainingTask(
                one.plan,
                seed,
                settings,
                resample=seed if params.confirm_on == "resampled" else None,
            )
            for seed in range(fresh, fresh + CONFIRMATION_SEEDS)
        ]
        for one in found
    }
    at_first = SEEDS_BEFORE_DROPPING if racing else CONFIRMATION_SEEDS
    first = {one: _all(own[:at_first]) for one, own in tasks.items()}
    begun = {one: _confirmation(one, done) for one, done in follow(first, runs, cost_rank)}
    leading = [one for one in found[1:] if racing and _may_win(begun[one], begun[found[0]])]
    going_on = [found[0], *leading] if leading else []
    yield from (begun[one] for one in found if one not in going_on)
    rest = {one: _all(tasks[one][at_first:]) for one in going_on}
    for one, done in follow(rest, runs, cost_rank):
        yield _confirmation(one, (*begun[one].runs, *done))


def _all(tasks: Sequence[TrainingTask]) -> NextTasks:
    """All of these at once."""
    return lambda done: [] if done else tasks


def _may_win(one: Confirmation, recipe: Confirmation) -> bool:
    if one.evaluation.outcome != "finished" or recipe.evaluation.outcome != "finished":
        return True  # its failure is found in full, or there is nothing to be held against
    return one.lead_over(recipe)[0] > 0


def _confirmation(one: Contender, runs: Sequence[TrainingRun]) -> Confirmation:
    evaluation = evaluate([run.curve for run in runs])
    return Confirmation(one.name, one.plan, one.candidate, one.recipe, evaluation, tuple(runs))


def _best_recipe(search: BioTune) -> Contender:
    """The best of the recipes that the search tried; full fine-tuning if it tried none."""
    tried = [one for one in search.history if one.origin.startswith("recipe:")]
    if tried:
        place = {one.id: rank for rank, one in enumerate(search.ranked)}
        # With several folds, recipes that did not last are in no ranking; they share fold 0.
        best = min(tried, key=lambda one: (place.get(one.id, len(place)), one.rank_key))
        return Contender(best.origin.removeprefix("recipe:"), best.plan, best, recipe=True)
    first = recipes(search.blocks, search.head)[0]
    return Contender(first.name, decode(first.genome, search.blocks, search.head), None, True)


def _accuracy(run: TrainingRun) -> float:
    return max(run.curve.validation_accuracy)
