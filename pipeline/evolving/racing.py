"""What of a batch of candidates is trained, and when a candidate is done.

With racing, a hopeless candidate gets no further seeds, and a hopeless run no further epochs. A
candidate has to become an elite, or it changes little. What it needs is frozen before its batch is
asked for, so neither order nor number of workers matters: nearly what the worst elite has come to
(while the initial population is scored, the scan's best).

- *seeds*: the next training seed is only run while the optimistic bound of the candidate's fitness
  reaches what it needs. How far a mean of few seeds is from the mean of all is known from this
  search's own candidates.
- *epochs*: a run stops when its curve would need a better end than all but few of this search's own
  good curves had.

And no more candidates of a batch get further seeds than there are elites, by their first one. That
is all that holds where there are no elites yet, whose runs all go to their end.

A stopped candidate ranks after every finished one, and is not confirmed; only the best recipe is in
any case. Its fitness, which the extinction factors and the screening's model take, is what it would
probably have come to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from biotune.data.division import Division
from biotune.evolution.candidate import Candidate
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation
from pipeline.evolving.forecast import SMALLEST_ERROR, Forecast, forecast_after
from pipeline.trials.runs import NextTasks, Runs, TrainingRun, at_once, follow

LUCK = 0.03
"""Share of its error by which an elite's score is taken to be lucky: a candidate that misses it by
less is not hopeless. With it, at most a quarter of the candidates of recorded landscapes that would
have become elites are stopped; without it, a third; see docs/search.md."""

SEED_OPTIMISM = 0.1
"""Standard deviations that a mean of few seeds is granted to be too poor by. Of little effect: with
.25, whole searches of three training seeds took the same CPU seconds and found nothing better."""

EvaluatedRuns = tuple[Candidate, tuple[TrainingRun, ...], Evaluation]
"""A candidate that is done, its runs in the order of the training seeds, and its score."""


@dataclass(frozen=True)
class FullTraining:
    """No race: every candidate of a batch gets all its seeds, each to its end.

    Attributes:
        seeds: training seeds, at least one.
        settings: of every run.
        folds: of the search.
    """

    seeds: tuple[int, ...]
    settings: TrainingSettings
    folds: int = 1

    def run(self, batch: Sequence[Candidate], runs: Runs) -> Iterator[EvaluatedRuns]:
        """Train a batch; each candidate as soon as its last run has ended."""
        by_id = {candidate.id: candidate for candidate in batch}
        wanted = {
            key: at_once([self.task(candidate, place) for place in range(len(self.seeds))])
            for key, candidate in by_id.items()
        }
        for key, its_runs in follow(wanted, runs, cost_rank):
            yield by_id[key], its_runs, evaluate([run.curve for run in its_runs])

    def task(
        self, candidate: Candidate, place: int, must_reach: tuple[float, ...] = ()
    ) -> TrainingTask:
        """The run of a candidate's seed at this place, from 0."""
        division = Division(candidate.fold, self.folds)
        return TrainingTask(
            candidate.plan, self.seeds[place], self.settings, division, must_reach=must_reach
        )

    def is_over(self, runs: Sequence[TrainingRun]) -> bool:
        """Whether more runs of the same candidate cannot change what it is."""
        return len(runs) == len(self.seeds) or runs[-1].curve.outcome != "finished"


@dataclass(frozen=True)
class Race:
    """What the runs of one batch are held against; see :func:`start_race`.

    Attributes:
        full: what a candidate is trained in that is not stopped.
        places: how many of a batch may get more seeds than the first.
        needed: candidate id → fitness that it must reach; no entry for one that runs in full. Empty
            where nobody is held against anything: all compete for the places.
        seed_spread: standard deviation of the logarithm of one seed's error round its candidate's
            mean; a ratio, because the errors of good candidates also vary less.
        forecasts: of a run's end after 1, 2, … epochs; None where too little is known.
    """

    full: FullTraining
    places: int
    needed: dict[int, float] = field(default_factory=dict)
    seed_spread: float = 0.0
    forecasts: tuple[Forecast | None, ...] = ()

    def run(self, batch: Sequence[Candidate], runs: Runs) -> Iterator[EvaluatedRuns]:
        """Train a batch; each candidate as soon as it is over or stopped.

        Only who gets more than the first seed is decided among all of them, and waits for all.
        """
        by_id = {candidate.id: candidate for candidate in batch}
        first: dict[int, tuple[TrainingRun, ...]] = {}
        wanted = {key: at_once([self._task(candidate, ())]) for key, candidate in by_id.items()}
        for key, its_runs in follow(wanted, runs, cost_rank):
            if self.full.is_over(its_runs):
                yield by_id[key], its_runs, self._evaluation(by_id[key], its_runs)
            else:
                first[key] = its_runs
        going_on = self.deserve_all_seeds(first)
        for key in first:
            if key not in going_on:
                yield by_id[key], first[key], self._evaluation(by_id[key], first[key])
        rest = {key: self._next_seed(by_id[key], first[key]) for key in by_id if key in going_on}
        for key, later in follow(rest, runs, cost_rank):
            its_runs = (*first[key], *later)
            yield by_id[key], its_runs, self._evaluation(by_id[key], its_runs)

    def deserve_all_seeds(self, first: Mapping[int, Sequence[TrainingRun]]) -> set[int]:
        """Who of a batch may get more than its first training seed; all others are stopped.

        As many as there are places, and those that run in full.

        Args:
            first: candidate id → the run of its first seed; of those that have more seeds to come.
        """
        scores = {key: evaluate([run.curve for run in runs]) for key, runs in first.items()}
        finished = [key for key, score in scores.items() if score.outcome == "finished"]
        order = sorted(finished, key=lambda key: (scores[key].rank_key, key))
        raced = [key for key in order if not self.needed or key in self.needed]
        whole = first.keys() - self.needed.keys() if self.needed else set()
        return {*raced[: self.places], *whole}

    def enough(self, needed: float, trained: int) -> float:
        """The mean fitness of this many seeds that may still become ``needed`` over all seeds.

        The mean of k of K seeds lies round the mean of all with variance σ²(K − k)/(kK).
        """
        seeds = len(self.full.seeds)
        left = (seeds - trained) / (trained * seeds)
        factor = math.exp(SEED_OPTIMISM * self.seed_spread * math.sqrt(left))
        return (needed + SMALLEST_ERROR) * factor - SMALLEST_ERROR

    def deserves_another_seed(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> bool:
        """Whether these runs' mean, allowing for bad luck, reaches what the candidate needs."""
        if candidate.id not in self.needed:
            return True
        mean = evaluate([run.curve for run in runs]).fitness
        return mean <= self.enough(self.needed[candidate.id], len(runs))

    def must_reach(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> tuple[float, ...]:
        """The scores that the candidate's next run must reach, epoch by epoch.

        Args:
            candidate: any of the batch.
            runs: those of its earlier seeds, all finished.
        """
        if candidate.id not in self.needed:
            return ()
        earlier = sum(evaluate([run.curve]).fitness for run in runs)
        count = len(runs) + 1
        needed = count * self.enough(self.needed[candidate.id], count) - earlier
        return tuple(
            0.0 if forecast is None else max(0.0, 1 - forecast.most_before(needed))
            for forecast in self.forecasts
        )

    def stopped(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> Evaluation:
        """The evaluation of a candidate that was stopped, with the fitness that it was heading for;
        no better than what it needed."""
        errors = [self._expected_error(run.curve) for run in runs]
        seen = evaluate([replace(run.curve, outcome="finished") for run in runs])
        fitness = max(float(np.mean(errors)), self.needed.get(candidate.id, 0.0))
        return replace(seen, fitness=fitness, outcome="stopped")

    def _task(self, candidate: Candidate, done: Sequence[TrainingRun]) -> TrainingTask:
        """The run of a candidate's next seed, given those that are done."""
        return self.full.task(candidate, len(done), self.must_reach(candidate, done))

    def _next_seed(self, candidate: Candidate, first: Sequence[TrainingRun]) -> NextTasks:
        """One more of a candidate's seeds, after these, while it is not hopeless."""

        def wanted(later: Sequence[TrainingRun]) -> Sequence[TrainingTask]:
            done = (*first, *later)
            if self.full.is_over(done) or not self.deserves_another_seed(candidate, done):
                return []
            return [self._task(candidate, done)]

        return wanted

    def _evaluation(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> Evaluation:
        outcomes = {run.curve.outcome for run in runs}
        failed = outcomes - {"finished", "stopped"}
        complete = outcomes == {"finished"} and len(runs) == len(self.full.seeds)
        if failed or complete:
            return evaluate([run.curve for run in runs if run.curve.outcome != "stopped"])
        return self.stopped(candidate, runs)

    def _expected_error(self, curve: LearningCurve) -> float:
        error = 1 - max(curve.validation_score)
        if curve.outcome == "finished":
            return error
        forecast = self.forecasts[len(curve.validation_score) - 1]
        return error if forecast is None else min(error, forecast.end_after(error))


def start_race(
    batch: Sequence[Candidate],
    elites: Sequence[Candidate],
    told: Iterable[tuple[Candidate, Sequence[TrainingRun]]],
    full: FullTraining,
    places: int,
) -> Race:
    """What a batch must reach; nothing where it cannot be held against anything.

    Args:
        batch: candidates that are about to be trained, of one fold.
        elites: those that stand now, best first; none before anything is told.
        told: every candidate that was told before, with its runs.
        full: what a candidate is trained in that is not stopped.
        places: how many elites there are.
    """
    of_fold = [(candidate, runs) for candidate, runs in told if candidate.fold == batch[0].fold]
    whole = [(candidate, runs) for candidate, runs in of_fold if candidate.finished]
    comparable = all(elite.fold == batch[0].fold for elite in elites)
    vacant = any(elite.failed for elite in elites)  # whoever finishes is better
    if not elites or not comparable or vacant or not whole:
        later = any(candidate.generation for candidate in batch)
        # One more than there are elites: the best of those that are not elites breeds, too.
        return Race(full, len(batch) if later else places + 1)
    worst = (1 + LUCK) * max(elite.fitness for elite in elites)
    in_full = {candidate.plan for candidate, _ in whole}  # costs nothing once more
    ended = {run.task: run.curve for _, runs in of_fold for run in runs}
    finished = [curve for curve in ended.values() if curve.outcome == "finished"]
    needed = {
        candidate.id: worst
        for candidate in batch
        if candidate.role != "rescore" and candidate.plan not in in_full
    }
    if not needed:
        return Race(full, len(batch))
    return Race(
        full,
        places,
        needed,
        seed_spread=_seed_spread([runs for _, runs in whole]),
        forecasts=tuple(forecast_after(finished, done) for done in range(1, full.settings.epochs)),
    )


def _seed_spread(trainings: Sequence[Sequence[TrainingRun]]) -> float:
    """Pooled over the candidates; 0 where each has one seed."""
    groups = [
        [math.log(1 - max(run.curve.validation_score) + SMALLEST_ERROR) for run in runs]
        for runs in trainings
    ]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return math.sqrt(squares / freedom) if freedom else 0.0


def cost_rank(task: TrainingTask) -> tuple[int, int]:
    """Sorts tasks, the longest first: those that train the earliest blocks, then the most."""
    trained = [multiplier is not None for multiplier in task.plan.values()]
    return (trained.index(True), -sum(trained))
