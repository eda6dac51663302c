"""Confirmation of the earlier search: the best plan and the best recipe, on fresh seeds and
divisions of the images; and which of the two wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from biotune.data.division import Division
from biotune.evolution.candidate import Candidate
from biotune.evolution.protocol import Optimizer
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation, FineTunePlan
from pipeline.evolving.racing import cost_rank
from pipeline.trials.runs import Runs, TrainingRun, at_once, follow

CONFIRMATION_SEEDS = 5
"""Fresh training seeds for the plan that is confirmed, and the best recipe."""

CLEAR_LEAD = 1.0
"""Standard errors by which a plan must lead the best recipe to win."""

FIRST_SEEDS = 2
"""Fresh seeds of each plan, by which the one to confirm is picked, and after which neither it nor
the recipe gets more if it does not lead."""


def recipe_of(candidate: Candidate) -> str | None:
    """Name of the recipe that a candidate is; what the scan trained was none."""
    kind, _, name = candidate.origin.partition(":")
    return name if kind == "recipe" else None


@dataclass(frozen=True)
class Confirmation:
    """A candidate's score from fresh seeds, and fresh divisions of the images.

    Attributes:
        candidate: as the search told it.
        recipe: whether it is the best recipe, which every winner is held against.
        evaluation: mean over its fresh seeds.
        runs: one for each fresh seed.
    """

    candidate: Candidate
    recipe: bool
    evaluation: Evaluation
    runs: tuple[TrainingRun, ...]

    @property
    def name(self) -> str:
        """The recipe's, or the number of another candidate."""
        return recipe_of(self.candidate) or f"candidate {self.candidate.id}"

    @property
    def plan(self) -> FineTunePlan:
        """The candidate's."""
        return self.candidate.plan

    @property
    def rank_key(self) -> tuple[object, ...]:
        """Sorts the best first; the recipe wins what is equal in every respect."""
        dropped = not self.recipe and len(self.runs) < CONFIRMATION_SEEDS
        return (dropped, self.evaluation.rank_key, not self.recipe, self.candidate.rank_key)

    def leads_clearly(self, recipe: Confirmation) -> bool:
        """Whether it leads by more than :data:`CLEAR_LEAD` standard errors of paired scores."""
        if len(self.runs) < CONFIRMATION_SEEDS or self.evaluation.outcome != "finished":
            return False
        pairs = zip(self.runs, recipe.runs, strict=False)
        differences = np.array([_score(run) - _score(other) for run, other in pairs])
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        return bool(differences.mean() > CLEAR_LEAD * error)


def confirm(
    search: Optimizer, top_k: int, settings: TrainingSettings, seeds: range, runs: Runs
) -> tuple[Confirmation, Confirmation]:
    """The winner of a search, and its best recipe, both confirmed; they may be the same.

    The best of the top plans is picked by three seeds of each, one of the search and two fresh. If
    it does not lead the recipe after two fresh seeds, neither gets more: it would hardly come to
    lead clearly.

    Args:
        search: with recipes, whose candidates are told.
        top_k: plans that are picked from.
        settings: of every run.
        seeds: :data:`CONFIRMATION_SEEDS` that the search did not train with.
        runs: trains.
    """
    best_with: dict[FineTunePlan, Candidate] = {}
    for candidate in search.ranked:
        if candidate.finished:
            best_with.setdefault(candidate.plan, candidate)
    recipe = next(candidate for candidate in search.ranked if recipe_of(candidate) is not None)
    plans = [c for c in list(best_with.values())[:top_k] if c.plan != recipe.plan]
    stand = _Confirming(recipe, settings, seeds, runs)
    stand.train(plans, FIRST_SEEDS)
    going_on = [recipe, *sorted(plans, key=stand.judged)[:1]]
    stand.train(going_on, FIRST_SEEDS)
    leader = min(going_on, key=lambda candidate: stand.done[candidate].evaluation.rank_key)
    if leader != recipe:
        stand.train([recipe, leader], CONFIRMATION_SEEDS)
    best_recipe = stand.done[recipe]
    ranked = sorted(stand.done.values(), key=lambda confirmation: confirmation.rank_key)
    if best_recipe.evaluation.outcome != "finished":
        return ranked[0], best_recipe
    leaders = (c for c in ranked if c.leads_clearly(best_recipe))
    return next(leaders, best_recipe), best_recipe


@dataclass
class _Confirming:
    """Candidates, and what is confirmed of them so far."""

    recipe: Candidate
    settings: TrainingSettings
    seeds: range
    runs: Runs
    done: dict[Candidate, Confirmation] = field(default_factory=dict)

    def train(self, chosen: Sequence[Candidate], count: int) -> None:
        """See to it that all of these have so many fresh seeds."""
        earlier = {c: self.done[c].runs if c in self.done else () for c in chosen}
        missing = {
            candidate: at_once(self._tasks(candidate)[len(its_runs) : count])
            for candidate, its_runs in earlier.items()
            if len(its_runs) < count
        }
        for candidate, later in follow(missing, self.runs, cost_rank):
            its_runs = (*earlier[candidate], *later)
            evaluation = evaluate([run.curve for run in its_runs])
            is_recipe = candidate == self.recipe
            self.done[candidate] = Confirmation(candidate, is_recipe, evaluation, its_runs)

    def judged(self, candidate: Candidate) -> tuple[bool, float]:
        """Sorts the best plan first, by its mean fitness over the search's seed and fresh ones."""
        fresh = self.done[candidate]
        count = len(fresh.runs)
        mean = (candidate.fitness + count * fresh.evaluation.fitness) / (1 + count)
        return fresh.evaluation.outcome != "finished", mean

    def _tasks(self, candidate: Candidate) -> list[TrainingTask]:
        return [
            TrainingTask(candidate.plan, seed, self.settings, Division(resampled=seed))
            for seed in self.seeds
        ]


def _score(run: TrainingRun) -> float:
    return max(run.curve.validation_score)
