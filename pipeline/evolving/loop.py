"""One genome's life: it is asked for, looked up or trained, told; and the best are confirmed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from biotune.evolution.candidate import Candidate
from biotune.evolution.optimizer import BioTune
from biotune.evolution.protocol import Optimizer
from biotune.evolution.screening import Screening
from biotune.plan import FineTunePlan
from pipeline.errors import PipelineError
from pipeline.evolving.confirmation import CLEAR_LEAD, Confirmation
from pipeline.evolving.racing import FullTraining, Race, start_race
from pipeline.params import SearchParams
from pipeline.trials.machine import training_settings
from pipeline.trials.runs import Runs, TrainingRun


@dataclass(frozen=True)
class EvaluatedCandidate:
    """A candidate that was told, with the runs behind its score.

    Attributes:
        candidate: with its evaluation.
        runs: one for each training seed that was run, in the order of the seeds.
        repeat_of: id of the first candidate of this search with the same plan and fold; None for
            most. Of the two, only what was stopped may have been trained further.
    """

    candidate: Candidate
    runs: tuple[TrainingRun, ...]
    repeat_of: int | None

    @property
    def epochs(self) -> int:
        """Trained in all, over its seeds."""
        return sum(len(run.curve.validation_score) for run in self.runs)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        evaluated: every candidate, in order of id.
        confirmations: the best first; those that racing dropped last.
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
        for confirmation in self.confirmations:
            if confirmation.evaluation.outcome == "finished" and not confirmation.dropped:
                lead, standard_error = confirmation.lead_over(recipe)
                if lead > CLEAR_LEAD * standard_error:
                    return confirmation
        return recipe

    @property
    def best_recipe(self) -> Confirmation:
        """The recipe with the best score in the search, confirmed like the winner."""
        return next(confirmation for confirmation in self.confirmations if confirmation.recipe)


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
        surgical_scan=params.surgical_scan,
        screening=Screening(min_expected_gain=params.min_expected_gain)
        if params.screening
        else None,
        rescore_elites=params.rescore_elites,
        reproduction=params.reproduction,
    )


def evolve(search: Optimizer, params: SearchParams, runs: Runs) -> Iterator[EvaluatedCandidate]:
    """Have every candidate that an optimizer asks for trained, and tell it.

    Args:
        search: asked until it is done.
        params: the ``search`` section.
        runs: trains.

    Yields:
        Each candidate as soon as it is told, which is in no order.
    """
    full = FullTraining(tuple(params.training_seeds), training_settings(params), params.folds)
    told: dict[int, EvaluatedCandidate] = {}
    first_with: dict[tuple[FineTunePlan, int], int] = {}
    while not search.done:
        batch = search.ask()
        if not batch:
            raise RuntimeError(f"{search} is not done, and asks for nothing")
        for candidate in batch:
            first_with.setdefault((candidate.plan, candidate.fold), candidate.id)
        race: Race | FullTraining = full
        if params.racing:
            # By id: in the order in which they finished, sums would differ in their last bits.
            earlier = [(told[key].candidate, told[key].runs) for key in sorted(told)]
            race = start_race(batch, search.standing_elites, earlier, full, params.elites)
        for candidate, its_runs, evaluation in race.run(batch, runs):
            first = first_with[candidate.plan, candidate.fold]
            told[candidate.id] = EvaluatedCandidate(
                search.tell(candidate, evaluation),
                its_runs,
                first if first < candidate.id else None,
            )
            yield told[candidate.id]


def search_result(
    evaluated: Sequence[EvaluatedCandidate], confirmations: Sequence[Confirmation]
) -> SearchResult:
    """What a search found, in order.

    Args:
        evaluated: every candidate.
        confirmations: of the best recipe and the best plans; see
            :func:`~pipeline.evolving.confirmation.confirm`.

    Raises:
        SearchFailedError: if no plan could be confirmed.
    """
    by_id = sorted(evaluated, key=lambda told: told.candidate.id)
    ranked = sorted(confirmations, key=_confirmation_rank)
    if ranked[0].evaluation.outcome != "finished":
        raise SearchFailedError(
            "every plan that was to be confirmed diverged or ran out of memory; try a smaller "
            "search.base_lr or search.batch_size"
        )
    return SearchResult(tuple(by_id), tuple(ranked))


def _confirmation_rank(confirmation: Confirmation) -> tuple[object, ...]:
    """Sorts the best first; the recipe wins what is equal in every respect."""
    candidate = confirmation.candidate
    key = (confirmation.evaluation.rank_key, not confirmation.recipe)
    return (confirmation.dropped, *key, candidate.rank_key if candidate else ())
