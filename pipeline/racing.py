"""Who is hopeless: when a candidate gets no further seeds, and a run no further epochs.

A candidate of a later generation has to beat an elite, or it changes nothing. What it needs is
frozen before its batch is asked for, so neither order nor number of workers matters:

- *seeds*: the next training seed is only run while the optimistic bound of the candidate's fitness
  reaches what it needs. How far a mean of few seeds is from the mean of all is known from this
  search's own candidates.
- *epochs*: a run stops when its curve would need a luckier end than this search's own curves had.

And no more candidates of a batch get further seeds than can change anything, by their first one:
see :func:`deserve_all_seeds`. That is all that holds for the first generation, whose runs all go to
their end.

A stopped candidate ranks after every finished one; it is never confirmed or returned. Its fitness,
which the extinction factors take, is what it would probably have come to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from biotune.evolution.candidate import Candidate
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.training import LearningCurve
from biotune.plan import Evaluation
from pipeline.runs import TrainingRun

SEED_OPTIMISM = 0.5
"""Standard deviations that a mean of few seeds is granted to be too poor by."""

LUCKY_END = 0.1
"""Share of the recorded good curves that ended better, from as far as this, than a run is granted.

Both were chosen on the curves of 24 plans (7 recipes, 17 random ones) with three seeds each on
digits at 32 px, by replaying searches on them: the best plan was never lost in 200 orders. Good
curves are those that end in the better half: on the 72 curves the luckiest tenth of the good ones
left .20 of the error after three epochs, that of all .25, since a run that never gets far also
improves little."""

FIRST_STOP = 2
"""Epochs that every run is given: before, its validation accuracy says too little."""

FEWEST_CURVES = 8
"""Recorded curves below which no run is stopped: a tenth of fewer means nothing."""

SMALLEST_ERROR = 0.002
"""Added to error rates before they are compared as ratios, so that a perfect score has one; half an
image in 250."""


@dataclass(frozen=True)
class Race:
    """What the runs of one batch are held against; see :func:`start_race`.

    Attributes:
        needed: candidate id → fitness that it must reach; no entry for one that runs in full.
        seeds: number of training seeds.
        seed_spread: standard deviation of the logarithm of one seed's error round its candidate's
            mean; a ratio, because the errors of good candidates also vary less.
        lucky: by epochs trained, from 0: error left over at the end of a run, as a share of the
            error so far, on a lucky run; 0 where nothing is known.
        typical: the same of the median run.
    """

    needed: dict[int, float]
    seeds: int
    seed_spread: float
    lucky: tuple[float, ...]
    typical: tuple[float, ...]

    def enough(self, needed: float, trained: int) -> float:
        """The mean fitness of this many seeds that may still become ``needed`` over all seeds.

        The mean of k of K seeds lies round the mean of all with variance σ²(K − k)/(kK).
        """
        left = (self.seeds - trained) / (trained * self.seeds)
        factor = math.exp(SEED_OPTIMISM * self.seed_spread * math.sqrt(left))
        return (needed + SMALLEST_ERROR) * factor - SMALLEST_ERROR

    def deserves_another_seed(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> bool:
        """Whether these runs' mean, allowing for bad luck, reaches what the candidate needs."""
        if candidate.id not in self.needed:
            return True
        mean = evaluate([run.curve for run in runs]).fitness
        return mean <= self.enough(self.needed[candidate.id], len(runs))

    def must_reach(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> tuple[float, ...]:
        """The accuracies that the candidate's next run must reach, epoch by epoch.

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
            max(0.0, 1 + SMALLEST_ERROR - (needed + SMALLEST_ERROR) / share) if share else 0.0
            for share in self.lucky[1:]
        )

    def stopped(self, candidate: Candidate, runs: Sequence[TrainingRun]) -> Evaluation:
        """The evaluation of a candidate that was stopped, with the fitness that it was heading for;
        no better than what it needed."""
        errors = [self._expected_error(run.curve) for run in runs]
        seen = evaluate([replace(run.curve, outcome="finished") for run in runs])
        fitness = max(float(np.mean(errors)), self.needed[candidate.id])
        return replace(seen, fitness=fitness, outcome="stopped")

    def _expected_error(self, curve: LearningCurve) -> float:
        error = 1 - max(curve.validation_accuracy)
        if curve.outcome == "finished":
            return error
        share = self.typical[len(curve.validation_accuracy)]
        return max(0.0, share * (error + SMALLEST_ERROR) - SMALLEST_ERROR)


def start_race(
    batch: Iterable[Candidate],
    elites: Sequence[Candidate],
    told: Iterable[tuple[Candidate, Sequence[TrainingRun]]],
    seeds: int,
    epochs: int,
) -> Race | None:
    """What a batch must reach; None if it runs in full.

    Args:
        batch: candidates that are about to be trained, of one fold.
        elites: those that stand now, best first; none while the first generation is scored.
        told: every candidate that was told before, with its runs.
        seeds: number of training seeds.
        epochs: that a run has at most.
    """
    batch = list(batch)
    of_fold = [(one, runs) for one, runs in told if one.fold == batch[0].fold]
    known = [(one, runs) for one, runs in of_fold if one.finished]
    comparable = all(elite.fold == batch[0].fold for elite in elites)
    if not elites or not comparable or not known:
        return None
    fitness = {elite.id: elite.fitness for elite in elites}
    in_full = {candidate.plan for candidate, _ in known}  # costs nothing once more
    ended = {run.task: run.curve for _, runs in of_fold for run in runs}
    lucky, typical = _shares_left(
        [curve for curve in ended.values() if curve.outcome == "finished"], epochs
    )
    return Race(
        needed={
            one.id: fitness.get(one.parents[0], math.inf)
            if one.origin == "exploitation"
            else max(fitness.values())
            for one in batch
            if one.origin != "rescore" and one.plan not in in_full
        },
        seeds=seeds,
        seed_spread=_seed_spread([runs for _, runs in known]),
        lucky=lucky,
        typical=typical,
    )


def deserve_all_seeds(
    batch: Mapping[int, Candidate],
    first: Mapping[int, Sequence[TrainingRun]],
    race: Race | None,
    elites: int,
) -> set[int]:
    """Who of a batch may get more than its first training seed; all others are stopped.

    No more than can change anything: of each elite's trials the best, of the offspring as many as
    there are elites; of the first generation, which has no elites to be held against, the better
    half, and at least one more than elites.

    Args:
        batch: by id.
        first: candidate id → the run of its first seed.
        race: None where nothing is known that the batch could be held against.
        elites: E.
    """
    if race is None and any(one.generation for one in batch.values()):
        return set(batch)
    scores = {key: evaluate([run.curve for run in runs]) for key, runs in first.items()}
    finished = [key for key, score in scores.items() if score.outcome == "finished"]
    order = sorted(finished, key=lambda key: (scores[key].rank_key, key))
    if race is None:
        return set(order[: max(elites + 1, math.ceil(len(batch) / 2))])
    raced = [key for key in order if key in race.needed]
    best_of = {
        batch[key].parents[0]: key for key in reversed(raced) if batch[key].origin == "exploitation"
    }
    others = [key for key in raced if batch[key].origin != "exploitation"]
    return {*best_of.values(), *others[:elites], *(set(batch) - set(race.needed))}


def _seed_spread(known: Sequence[Sequence[TrainingRun]]) -> float:
    """Pooled over the candidates; 0 where each has one seed."""
    groups = [
        [math.log(1 - max(run.curve.validation_accuracy) + SMALLEST_ERROR) for run in runs]
        for runs in known
    ]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return math.sqrt(squares / freedom) if freedom else 0.0


def _shares_left(
    curves: Sequence[LearningCurve], epochs: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """After each number of epochs: the error at a run's end as a share of the error so far.

    Of a lucky run, and of the median one, both of the better half of all; for a lucky one 0, which
    stops nobody, after too few epochs or where too few curves are known.
    """
    ends = [max(curve.validation_accuracy) for curve in curves]
    good = [curve for curve, end in zip(curves, ends, strict=True) if end >= np.median(ends)]
    lucky, typical = [0.0], [1.0]
    for done in range(1, epochs):
        shares = [
            (1 - max(curve.validation_accuracy) + SMALLEST_ERROR)
            / (1 - max(curve.validation_accuracy[:done]) + SMALLEST_ERROR)
            for curve in good
            if len(curve.validation_accuracy) > done
        ]
        enough = done >= FIRST_STOP and len(shares) >= FEWEST_CURVES
        lucky.append(float(np.quantile(shares, LUCKY_END)) if enough else 0.0)
        typical.append(float(np.median(shares)) if shares else 1.0)
    return tuple(lucky), tuple(typical)


def cost_rank(task: TrainingTask) -> tuple[int, int]:
    """Sorts tasks, the longest first: those that train the earliest blocks, then the most."""
    trained = [multiplier is not None for multiplier in task.plan.values()]
    return (trained.index(True), -sum(trained))
