"""Who really is best: the top of a search and the best recipe, on fresh seeds and fresh divisions
of the images."""

from __future__ import annotations

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
from pipeline.params import SearchParams
from pipeline.racing import cost_rank
from pipeline.runs import Runs, TrainingRun, at_once, follow

CONFIRMATION_SEEDS = 5
"""Fresh training seeds for each plan that is confirmed."""

CLEAR_LEAD = 2.0
"""Standard errors by which a plan must lead the best recipe to win. One is not enough: the best of
several plans that are no better leads by as much every other time."""

MOST_SEEDS = 10
"""Fresh seeds, at most, for the best plan and the recipe, while it is in doubt which is better: the
plan leads by more than one standard error, but not clearly. Full fine-tuning of few images varies
so much that five seeds left a lead of three points in doubt (digits at 32 px)."""

SEEDS_BEFORE_DROPPING = 2
"""Fresh seeds after which racing goes on with the best plan alone, if it leads the recipe."""


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
            racing dropped all others; more if it was in doubt which of the two is better.
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
    """Train contenders on fresh seeds, and yield each as soon as it needs no more.

    Args:
        found: the best recipe first; see :func:`contenders`.
        params: the ``search`` section.
        settings: of every run.
        runs: trains.
        racing: after two seeds, go on with the best plan alone, and with the recipe that it is held
            against; not even with these if the recipe is better, as nothing would come to lead it
            clearly.
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
            for seed in range(fresh, fresh + MOST_SEEDS)
        ]
        for one in found
    }
    done: dict[Contender, Confirmation] = {}

    def train(chosen: Sequence[Contender], seeds: int) -> None:
        earlier = {one: done[one].runs if one in done else () for one in chosen}
        missing = {one: at_once(tasks[one][len(own) : seeds]) for one, own in earlier.items()}
        for one, own in follow(missing, runs, cost_rank):
            done[one] = _confirmation(one, (*earlier[one], *own))

    train(found, SEEDS_BEFORE_DROPPING if racing else CONFIRMATION_SEEDS)
    rounds = [(_leader_and_recipe, CONFIRMATION_SEEDS)] if racing else []
    going_on = list(found)
    for who, seeds in [*rounds, (_in_doubt, MOST_SEEDS)]:
        before, going_on = going_on, who(found, done)
        yield from (done[one] for one in before if one not in going_on)
        train(going_on, seeds)
    yield from (done[one] for one in going_on)


def _leader_and_recipe(
    found: Sequence[Contender], done: Mapping[Contender, Confirmation]
) -> list[Contender]:
    """The best plan and the recipe; none if the recipe is better."""
    recipe, *plans = found
    in_full = [one for one in plans if not done[one].dropped]
    best = min(in_full or plans, key=lambda one: done[one].evaluation.rank_key, default=recipe)
    if done[best].evaluation.rank_key < done[recipe].evaluation.rank_key:
        return [recipe, best]
    return []


def _in_doubt(
    found: Sequence[Contender], done: Mapping[Contender, Confirmation]
) -> list[Contender]:
    """The best plan and the recipe, if it leads, but not clearly."""
    pair = _leader_and_recipe(found, done)
    if not pair or any(done[one].evaluation.outcome != "finished" for one in pair):
        return []
    lead, standard_error = done[pair[1]].lead_over(done[pair[0]])
    return pair if standard_error < lead <= CLEAR_LEAD * standard_error else []


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
