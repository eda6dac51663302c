"""Who really is best: the top of a search and the best recipe, on fresh seeds and fresh divisions
of the images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from biotune.data.division import AS_PREPARED, Division
from biotune.evolution.candidate import Candidate
from biotune.evolution.genome import decode
from biotune.evolution.protocol import Optimizer
from biotune.evolution.recipes import recipes
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.plan import Evaluation, FineTunePlan
from pipeline.evolving.racing import cost_rank
from pipeline.params import SearchParams
from pipeline.trials.machine import training_settings
from pipeline.trials.runs import Runs, TrainingRun, at_once, follow

CONFIRMATION_SEEDS = 5
"""Fresh training seeds for each plan that is confirmed."""

CLEAR_LEAD = 1.0
"""Standard errors by which a plan must lead the best recipe to win. Where it is in truth no better,
either may win, and nothing is lost; two of them gave away plans that were three points better,
because full fine-tuning of few images varies so much (digits at 32 px)."""

FIRST_SEEDS = 2
"""Fresh seeds after which racing gives no more to a plan that does not lead the recipe."""


@dataclass(frozen=True)
class Confirmation:
    """A plan's score from fresh seeds, and fresh divisions of the images: hardly a lucky one.

    Racing has picked the plan by some of these seeds.

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
        differences = np.array([_score(run) - _score(others) for run, others in pairs])
        spread = differences.std(ddof=1) / np.sqrt(len(differences))
        return float(differences.mean()), float(spread)


@dataclass(frozen=True)
class Contender:
    """A plan that is to be confirmed; attributes as of :class:`Confirmation`."""

    name: str
    plan: FineTunePlan
    candidate: Candidate | None
    recipe: bool


def most_runs(params: SearchParams) -> int:
    """How many runs confirming takes at most: of the top k and of the recipe."""
    if not params.racing:
        return (params.confirm_top_k + 1) * CONFIRMATION_SEEDS
    runs, left, seeds = 2 * CONFIRMATION_SEEDS, params.confirm_top_k, 0
    while left > 1:
        seeds += 1
        runs += seeds * (left - left // 2)
        left //= 2
    return runs


def contenders(search: Optimizer, params: SearchParams, blocks: Sequence[str]) -> list[Contender]:
    """The best recipe, first, and the best distinct plans of the search, which may include it.

    Args:
        search: whose candidates are told.
        params: the ``search`` section.
        blocks: of the network, in forward order, the head last.
    """
    best_with: dict[FineTunePlan, Candidate] = {}
    for candidate in search.ranked:
        if candidate.finished:
            best_with.setdefault(candidate.plan, candidate)
    recipe = _best_recipe(search, params, blocks)
    top = list(best_with.values())[: params.confirm_top_k]
    return [
        recipe,
        *(
            Contender(f"candidate {candidate.id}", candidate.plan, candidate, recipe=False)
            for candidate in top
            if candidate.plan != recipe.plan
        ),
    ]


def confirm(top: Sequence[Contender], params: SearchParams, runs: Runs) -> Iterator[Confirmation]:
    """Train contenders on fresh seeds, and yield each as soon as it needs no more.

    With ``racing``, one plan alone is confirmed, beside the recipe that it is held against. The
    plans get one fresh seed after another; after each, the worse half of them is dropped, by the
    mean over seeds of the search and fresh ones ("successive halving": Jamieson and Talwalkar 2016,
    arXiv 1502.07943). If the last does not lead the recipe after two fresh seeds, neither gets
    more: it would hardly come to lead clearly.

    Args:
        top: the best recipe first; see :func:`contenders`.
        params: the ``search`` section.
        runs: trains.
    """
    stand = _Confirming(params, runs)
    if not params.racing:
        yield from stand.train(top, CONFIRMATION_SEEDS)
        return
    recipe, *plans = top
    seeds = 0
    while len(plans) > 1:
        seeds += 1
        stand.train_all(plans, seeds)
        plans.sort(key=stand.judged)
        half = len(plans) // 2
        yield from (stand.done[plan] for plan in plans[half:])
        del plans[half:]
    last = [recipe, *plans]
    stand.train_all(last, max(seeds, FIRST_SEEDS))
    leader = min(last, key=lambda contender: stand.done[contender].evaluation.rank_key)
    if leader != recipe:
        stand.train_all(last, CONFIRMATION_SEEDS)
    yield from (stand.done[contender] for contender in last)


@dataclass
class _Confirming:
    """Contenders, and what is confirmed of them so far."""

    params: SearchParams
    runs: Runs
    done: dict[Contender, Confirmation] = field(default_factory=dict)

    def train_all(self, chosen: Sequence[Contender], seeds: int) -> None:
        """See to it that all of these have so many fresh seeds."""
        for _ in self.train(chosen, seeds):
            pass

    def train(self, chosen: Sequence[Contender], seeds: int) -> Iterator[Confirmation]:
        """The same; each that needed more as soon as it has them."""
        earlier = {plan: self.done[plan].runs if plan in self.done else () for plan in chosen}
        missing = {
            contender: at_once(self._tasks(contender)[len(its_runs) : seeds])
            for contender, its_runs in earlier.items()
            if len(its_runs) < seeds
        }
        for contender, later in follow(missing, self.runs, cost_rank):
            self.done[contender] = _confirmation(contender, (*earlier[contender], *later))
            yield self.done[contender]

    def judged(self, contender: Contender) -> tuple[bool, float]:
        """Sorts the best plan first, by its mean fitness over the search's seeds and fresh ones."""
        fitness = contender.candidate.fitness if contender.candidate else math.inf
        fresh = self.done.get(contender)
        if fresh is None:
            return False, fitness
        seeds, count = len(self.params.training_seeds), len(fresh.runs)
        mean = (seeds * fitness + count * fresh.evaluation.fitness) / (seeds + count)
        return fresh.evaluation.outcome != "finished", mean

    def _tasks(self, contender: Contender) -> list[TrainingTask]:
        """Of all fresh seeds."""
        settings, fresh = training_settings(self.params), max(self.params.training_seeds) + 1
        resampled = self.params.confirm_on == "resampled"
        return [
            TrainingTask(
                contender.plan,
                seed,
                settings,
                Division(resampled=seed) if resampled else AS_PREPARED,
            )
            for seed in range(fresh, fresh + CONFIRMATION_SEEDS)
        ]


def _confirmation(contender: Contender, runs: Sequence[TrainingRun]) -> Confirmation:
    evaluation = evaluate([run.curve for run in runs])
    return Confirmation(**vars(contender), evaluation=evaluation, runs=tuple(runs))


def _best_recipe(search: Optimizer, params: SearchParams, blocks: Sequence[str]) -> Contender:
    """The best of the recipes that the search tried; full fine-tuning if it tried none."""
    tried = [candidate for candidate in search.history if candidate.recipe is not None]
    if tried:
        place = {candidate.id: rank for rank, candidate in enumerate(search.ranked)}
        # With several folds, recipes that did not last are in no ranking; they share fold 0.
        best = min(tried, key=lambda recipe: (place.get(recipe.id, len(place)), recipe.rank_key))
        return Contender(str(best.recipe), best.plan, best, recipe=True)
    first = recipes(blocks, params.head)[0]
    plan = decode(first.genome, blocks, params.head)
    return Contender(first.name, plan, candidate=None, recipe=True)


def _score(run: TrainingRun) -> float:
    return max(run.curve.validation_score)
