"""Ask for candidates, look up or train them, tell; then confirm who really is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from biotune.evolution.candidate import Candidate
from biotune.evolution.optimizer import BioTune
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.plan import Evaluation, FineTunePlan
from pipeline.errors import PipelineError
from pipeline.evolving.confirmation import CLEAR_LEAD, Confirmation, confirm, contenders
from pipeline.evolving.racing import Race, cost_rank, deserve_all_seeds, start_race
from pipeline.params import SearchParams
from pipeline.trials.machine import training_settings
from pipeline.trials.runs import NextTasks, Runs, TrainingRun, at_once, follow


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
        for one in self.confirmations:
            if one.evaluation.outcome == "finished" and not one.dropped:
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
        surgical_scan=params.surgical_scan,
        smoothed_ranking=params.smoothed_ranking,
        rescore_elites=params.rescore_elites,
        reproduction=params.reproduction,
    )


def evolve(
    params: SearchParams,
    blocks: Sequence[str],
    runs: Runs,
    on_evaluated: Callable[[EvaluatedCandidate], None],
    on_confirmed: Callable[[Confirmation], None],
) -> SearchResult:
    """Evolve plans for a network with these blocks, and confirm the best.

    Args:
        params: the ``search`` section.
        blocks: in forward order, the head last.
        runs: trains.
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
        race = _race(search, evaluated, params)
        for key, own, evaluation in _train(batch, race, runs, params):
            search.tell(batch[key], evaluation)
            told = replace(batch[key], evaluation=evaluation)
            first = first_with[told.plan, told.fold]
            evaluated[key] = EvaluatedCandidate(told, own, first if first < key else None)
            on_evaluated(evaluated[key])
    confirmations = _confirmations(search, params, runs, on_confirmed)
    return SearchResult(tuple(evaluated[key] for key in sorted(evaluated)), confirmations)


def _train(
    batch: Mapping[int, Candidate], race: Race | None, runs: Runs, params: SearchParams
) -> Iterator[tuple[int, tuple[TrainingRun, ...], Evaluation]]:
    """Every candidate's id, with its runs and score, as soon as it is known."""
    seeds = params.training_seeds
    at_first = len(seeds) if params.racing is False else 1
    wanted = {
        key: at_once([_task(one, seed, (), race, params) for seed in seeds[:at_first]])
        for key, one in batch.items()
    }
    first = dict(follow(wanted, runs, cost_rank))
    going_on = set(batch)
    if params.races_seeds and len(seeds) > 1:
        going_on = deserve_all_seeds(batch, first, race, params.elites)
    for key in batch:
        if key not in going_on:
            yield key, first[key], _evaluation(batch[key], first[key], race, params)
    rest = {key: _next_seed(batch[key], first[key], race, params) for key in going_on}
    for key, own in follow(rest, runs, cost_rank):
        done = (*first[key], *own)
        yield key, done, _evaluation(batch[key], done, race, params)


def _race(
    search: BioTune, evaluated: Mapping[int, EvaluatedCandidate], params: SearchParams
) -> Race | None:
    if params.racing is False:
        return None
    return start_race(
        search.ask(),
        search.standing_elites,
        # By id: in the order in which they finished, sums would differ in their last bits.
        [(evaluated[key].candidate, evaluated[key].runs) for key in sorted(evaluated)],
        len(params.training_seeds),
        params.epochs,
    )


def _task(
    candidate: Candidate,
    seed: int,
    done: Sequence[TrainingRun],
    race: Race | None,
    params: SearchParams,
) -> TrainingTask:
    """The run of a candidate's next seed, given those that are done."""
    whole = TrainingTask(
        candidate.plan, seed, training_settings(params), candidate.fold, params.folds
    )
    if race is None or not params.races_epochs:
        return whole
    return replace(whole, must_reach=race.must_reach(candidate, done))


def _next_seed(
    candidate: Candidate, first: Sequence[TrainingRun], race: Race | None, params: SearchParams
) -> NextTasks:
    """One more of a candidate's seeds, after these, while it is not hopeless."""

    def wanted(later: Sequence[TrainingRun]) -> Sequence[TrainingTask]:
        done = (*first, *later)
        left = params.training_seeds[len(done) :]
        if not left or done[-1].curve.outcome != "finished":
            return []
        hopeless = race is not None and not race.deserves_another_seed(candidate, done)
        if params.races_seeds and hopeless:
            return []
        return [_task(candidate, left[0], done, race, params)]

    return wanted


def _evaluation(
    candidate: Candidate, runs: Sequence[TrainingRun], race: Race | None, params: SearchParams
) -> Evaluation:
    outcomes = {run.curve.outcome for run in runs}
    failed = outcomes - {"finished", "stopped"}
    complete = outcomes == {"finished"} and len(runs) == len(params.training_seeds)
    if failed or complete:
        return evaluate([run.curve for run in runs if run.curve.outcome != "stopped"])
    if race is None:
        return replace(evaluate([run.curve for run in runs]), outcome="stopped")
    return race.stopped(candidate, runs)


def _confirmations(
    search: BioTune,
    params: SearchParams,
    runs: Runs,
    on_confirmed: Callable[[Confirmation], None],
) -> tuple[Confirmation, ...]:
    found = contenders(search, params)
    confirmed: dict[FineTunePlan, Confirmation] = {}
    for one in confirm(found, params, training_settings(params), runs, racing=params.races_seeds):
        confirmed[one.plan] = one
        on_confirmed(one)
    # The recipe is the first of the contenders, so that it wins what is equal in every respect.
    ranked = sorted(
        (confirmed[one.plan] for one in found if one.plan in confirmed),
        key=lambda one: (one.dropped, one.evaluation.rank_key),
    )
    if ranked[0].evaluation.outcome != "finished":
        raise SearchFailedError(
            "every plan that was to be confirmed diverged or ran out of memory; try a smaller "
            "search.base_lr or search.batch_size"
        )
    return tuple(ranked)
