"""Who really is best: the top of a search and the best recipe, on fresh seeds and fresh divisions
of the images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from biotune.evolution.candidate import Candidate
from biotune.evolution.genome import decode
from biotune.evolution.optimizer import BioTune
from biotune.evolution.recipes import recipes
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation, FineTunePlan
from pipeline.evolving.racing import cost_rank
from pipeline.params import SearchParams
from pipeline.trials.runs import Runs, TrainingRun, at_once, follow

CONFIRMATION_SEEDS = 5
"""Fresh training seeds for each plan that is confirmed."""

CLEAR_LEAD = 1.0
"""Standard errors by which a plan must lead the best recipe to win. Where it is in truth no better,
either may win, and nothing is lost; two of them gave away plans that were three points better,
because full fine-tuning of few images varies so much (digits at 32 px)."""

EVIDENCE = 3
"""Training seeds, of the search and fresh ones, by which racing picks the one plan to confirm."""

FIRST_SEEDS = 2
"""Fresh seeds after which racing gives no more to a plan that does not lead the recipe."""


@dataclass(frozen=True)
class Confirmation:
    """A plan's score from fresh seeds, and fresh divisions of the images: hardly a lucky one.

    Where the search has one training seed, racing picks the plan by two of the five as well.

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
        """Mean difference in validation score, on the same seeds and images; its standard error.

        Over the seeds that both have. Both must be finished.
        """
        pairs = zip(self.runs, other.runs, strict=False)
        differences = np.array([_score(own) - _score(its) for own, its in pairs])
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
    """Train contenders on fresh seeds, and yield each as soon as it needs no more.

    Args:
        found: the best recipe first; see :func:`contenders`.
        params: the ``search`` section.
        settings: of every run.
        runs: trains.
        racing: confirm the best plan alone, beside the recipe that it is held against. Which is the
            best is decided by three seeds of each, of the search or fresh. If it does not lead the
            recipe after two fresh seeds, neither gets more: it would hardly come to lead clearly.
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
    done: dict[Contender, Confirmation] = {}

    def train(chosen: Sequence[Contender], seeds: int) -> None:
        earlier = {one: done[one].runs if one in done else () for one in chosen}
        missing = {
            one: at_once(tasks[one][len(own) : seeds])
            for one, own in earlier.items()
            if len(own) < seeds
        }
        for one, own in follow(missing, runs, cost_rank):
            done[one] = _confirmation(one, (*earlier[one], *own))

    going_on = list(found)
    if racing:
        recipe, *plans = found
        seeds = len(params.training_seeds)
        train(plans, max(0, EVIDENCE - seeds))
        going_on = [recipe, *sorted(plans, key=lambda one: _judged(one, done.get(one), seeds))[:1]]
        yield from (done[one] for one in plans if one in done and one not in going_on)
    train(going_on, FIRST_SEEDS if racing else CONFIRMATION_SEEDS)
    if racing:
        before, going_on = going_on, _leader_and_recipe(going_on, done)
        yield from (done[one] for one in before if one not in going_on)
        train(going_on, CONFIRMATION_SEEDS)
    yield from (done[one] for one in going_on)


def _judged(one: Contender, fresh: Confirmation | None, seeds: int) -> tuple[bool, float]:
    """Sorts the best plan first, by its mean fitness over the search's seeds and fresh ones."""
    found = one.candidate.fitness if one.candidate else math.inf
    if fresh is None:
        return False, found
    count = len(fresh.runs)
    mean = (seeds * found + count * fresh.evaluation.fitness) / (seeds + count)
    return fresh.evaluation.outcome != "finished", mean


def _leader_and_recipe(
    found: Sequence[Contender], done: Mapping[Contender, Confirmation]
) -> list[Contender]:
    """The best recipe, which is the first, and the best plan; none if the recipe is better."""
    ranked = sorted(found, key=lambda one: done[one].evaluation.rank_key)
    return [found[0], ranked[0]] if ranked and ranked[0] != found[0] else []


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


def _score(run: TrainingRun) -> float:
    return max(run.curve.validation_score)
