"""Ask for candidates, look up or train them, tell; then confirm who really is best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from biotune.evolution.candidate import Candidate
from biotune.evolution.genome import decode
from biotune.evolution.optimizer import BioTune
from biotune.evolution.recipes import recipes
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation, FineTunePlan
from pipeline.errors import PipelineError
from pipeline.params import SearchParams
from pipeline.runs import TrainingRun

Key = TypeVar("Key")
RunTasks = Callable[[Iterable[TrainingTask]], Iterator[TrainingRun]]
"""Trains tasks, or knows them already; yields each distinct one once, in any order."""

CONFIRMATION_SEEDS = 5
"""Fresh training seeds for each plan that is confirmed."""

CLEAR_LEAD = 2.0
"""Standard errors by which a plan must lead the best recipe to win. One is not enough: the best of
several plans that are no better leads by as much every other time."""


@dataclass(frozen=True)
class EvaluatedCandidate:
    """A candidate that was told, with the runs behind its score.

    Attributes:
        candidate: with its evaluation.
        runs: one for each training seed, in the order of the seeds.
        repeat_of: id of the first candidate of this search with the same plan and fold, which was
            not trained again; None for most.
    """

    candidate: Candidate
    runs: tuple[TrainingRun, ...]
    repeat_of: int | None


@dataclass(frozen=True)
class Confirmation:
    """A plan's score from fresh seeds, and fresh divisions of the images: no lucky one.

    Attributes:
        name: ``candidate 12``, or the recipe's name.
        plan: the plan.
        candidate: the candidate it came from; None for a recipe that the search did not try.
        recipe: whether it is the best recipe, which every winner is held against.
        evaluation: mean over the fresh seeds.
        runs: one for each fresh seed.
    """

    name: str
    plan: FineTunePlan
    candidate: Candidate | None
    recipe: bool
    evaluation: Evaluation
    runs: tuple[TrainingRun, ...]

    def lead_over(self, other: Confirmation) -> tuple[float, float]:
        """Mean difference in validation accuracy, on the same seeds and images; its standard error.

        Both must be finished.
        """
        own, others = (
            np.array([max(run.curve.validation_accuracy) for run in one.runs])
            for one in (self, other)
        )
        differences = own - others
        spread = differences.std(ddof=1) / np.sqrt(len(differences))
        return float(differences.mean()), float(spread)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        evaluated: every candidate, in order of id.
        confirmations: the best first.
    """

    evaluated: tuple[EvaluatedCandidate, ...]
    confirmations: tuple[Confirmation, ...]

    @property
    def winner(self) -> Confirmation:
        """The best of the confirmed plans that are clearly better than the best recipe.

        A plan that was found must lead by more than :data:`CLEAR_LEAD` standard errors of its
        paired differences to the recipe. If none does, the recipe wins, which luck did not choose.
        """
        recipe = self.best_recipe
        if recipe.evaluation.outcome != "finished":
            return self.confirmations[0]
        for one in self.confirmations:
            if one.evaluation.outcome == "finished":
                lead, standard_error = one.lead_over(recipe)
                if lead > CLEAR_LEAD * standard_error:
                    return one
        return recipe

    @property
    def best_recipe(self) -> Confirmation:
        """The known recipe with the best score in the search, confirmed like the winner."""
        return next(one for one in self.confirmations if one.recipe)


class SearchFailedError(PipelineError):
    """No plan could be confirmed: every one diverged or ran out of memory."""


def new_search(params: SearchParams, blocks: Sequence[str]) -> BioTune:
    """The optimizer that ``params.yaml`` describes."""
    return BioTune(
        blocks=blocks,
        population=params.population,
        generations=params.generations,
        elites=params.elites,
        seed=params.seed,
        folds=params.folds,
        head=params.head,
        seed_recipes=params.seed_recipes,
        rescore_elites=params.rescore_elites,
        reproduction=params.reproduction,
    )


def evolve(
    params: SearchParams,
    blocks: Sequence[str],
    run_tasks: RunTasks,
    on_evaluated: Callable[[EvaluatedCandidate], None],
    on_confirmed: Callable[[Confirmation], None],
) -> SearchResult:
    """Evolve plans for a network with these blocks, and confirm the best.

    Args:
        params: the ``search`` section.
        blocks: in forward order, the head last.
        run_tasks: trains.
        on_evaluated: called for every candidate, as soon as it is told.
        on_confirmed: called for every confirmed plan.

    Raises:
        SearchFailedError: if every plan that was to be confirmed failed.
    """
    search = new_search(params, blocks)
    evaluated: dict[int, EvaluatedCandidate] = {}
    first_with: dict[tuple[FineTunePlan, int], int] = {}
    while not search.done:
        batch = {candidate.id: candidate for candidate in search.ask()}
        for key, candidate in batch.items():
            first_with.setdefault((candidate.plan, candidate.fold), key)
        tasks = {key: _tasks(candidate, params) for key, candidate in batch.items()}
        for key, runs in _grouped(tasks, run_tasks):
            evaluation = evaluate([run.curve for run in runs])
            search.tell(batch[key], evaluation)
            told = replace(batch[key], evaluation=evaluation)
            first = first_with[told.plan, told.fold]
            evaluated[key] = EvaluatedCandidate(told, runs, first if first < key else None)
            on_evaluated(evaluated[key])
    contenders = _contenders(search, params)
    confirmed: dict[FineTunePlan, Confirmation] = {}
    for confirmation in _confirm(contenders, params, run_tasks):
        confirmed[confirmation.plan] = confirmation
        on_confirmed(confirmation)
    # The recipe is the first of the contenders, so that it wins what is equal in every respect.
    confirmations = sorted(
        (confirmed[one.plan] for one in contenders), key=lambda one: one.evaluation.rank_key
    )
    if confirmations[0].evaluation.outcome != "finished":
        raise SearchFailedError(
            "every plan that was to be confirmed diverged or ran out of memory; try a smaller "
            "search.base_lr or search.batch_size"
        )
    return SearchResult(tuple(evaluated[key] for key in sorted(evaluated)), tuple(confirmations))


def training_settings(params: SearchParams) -> TrainingSettings:
    """How each run of a search is trained."""
    return TrainingSettings(params.epochs, params.patience, params.batch_size, params.base_lr)


def _tasks(candidate: Candidate, params: SearchParams) -> list[TrainingTask]:
    settings = training_settings(params)
    return [
        TrainingTask(candidate.plan, seed, settings, candidate.fold, params.folds)
        for seed in params.training_seeds
    ]


def _grouped(
    tasks: Mapping[Key, Sequence[TrainingTask]], run_tasks: RunTasks
) -> Iterator[tuple[Key, tuple[TrainingRun, ...]]]:
    """Run all tasks side by side; yield each key as soon as every task of its own is done."""
    waiting = dict(tasks)
    done: dict[TrainingTask, TrainingRun] = {}
    for run in run_tasks([task for own in tasks.values() for task in own]):
        done[run.task] = run
        complete = [key for key, own in waiting.items() if all(task in done for task in own)]
        for key in complete:
            yield key, tuple(done[task] for task in waiting.pop(key))


@dataclass(frozen=True)
class _Contender:
    name: str
    plan: FineTunePlan
    candidate: Candidate | None
    recipe: bool


def _contenders(search: BioTune, params: SearchParams) -> list[_Contender]:
    """The best distinct plans of the search, and the best recipe, which may be one of them."""
    best_with: dict[FineTunePlan, Candidate] = {}
    for one in search.ranked:
        if one.evaluation and one.evaluation.outcome == "finished":
            best_with.setdefault(one.plan, one)
    recipe = _best_recipe(search)
    top = list(best_with.values())[: params.confirm_top_k]
    others = [one for one in top if one.plan != recipe.plan]
    return [recipe, *(_Contender(f"candidate {one.id}", one.plan, one, False) for one in others)]


def _best_recipe(search: BioTune) -> _Contender:
    """The best of the recipes that the search tried; full fine-tuning if it tried none."""
    tried = [one for one in search.history if one.origin.startswith("recipe:")]
    if tried:
        best = min(tried, key=lambda one: one.rank_key)
        return _Contender(best.origin.removeprefix("recipe:"), best.plan, best, recipe=True)
    first = recipes(search.blocks, search.head)[0]
    return _Contender(first.name, decode(first.genome, search.blocks, search.head), None, True)


def _confirm(
    contenders: Sequence[_Contender], params: SearchParams, run_tasks: RunTasks
) -> Iterator[Confirmation]:
    fresh = max(params.training_seeds) + 1
    tasks = {
        contender.name: [
            TrainingTask(
                contender.plan,
                seed,
                training_settings(params),
                resample=seed if params.confirm_on == "resampled" else None,
            )
            for seed in range(fresh, fresh + CONFIRMATION_SEEDS)
        ]
        for contender in contenders
    }
    by_name = {contender.name: contender for contender in contenders}
    for name, runs in _grouped(tasks, run_tasks):
        one = by_name[name]
        evaluation = evaluate([run.curve for run in runs])
        yield Confirmation(one.name, one.plan, one.candidate, one.recipe, evaluation, runs)
