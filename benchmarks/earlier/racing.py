"""Racing of the earlier search: a hopeless run gets no further epochs.

A candidate of a later generation has to beat an elite, or it changes nothing. A run stops when its
curve would need a better end than the median of this search's own good curves had. A stopped
candidate ranks after every finished one; its fitness, which the extinction factors take, is what
it would probably have come to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from biotune.evolution.candidate import Candidate
from biotune.evolution.protocol import Optimizer
from biotune.finetuning.fitness import TrainingTask, evaluate
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.plan import Evaluation, FineTunePlan
from pipeline.evolving.racing import cost_rank
from pipeline.trials.runs import Runs, TrainingRun, at_once, follow

LEAST_SLOPE = 0.2
"""Of a forecast; fewer than twenty curves may by chance show none."""

FIRST_STOP = 2
"""Epochs that every run is given: before, its validation score says too little."""

FEWEST_CURVES = 6
"""Good runs that must have been recorded before any is stopped."""

SMALLEST_ERROR = 0.002
"""Added to error rates before they are compared as ratios, so that a perfect score has one."""


@dataclass(frozen=True)
class Forecast:
    """What the error of a run so far says of its error at the end.

    log(end) = slope · log(so far) + offset, by least squares over the runs of this search.

    Attributes:
        slope: in (0, 1].
        offset: the median of the recorded ones.
    """

    slope: float
    offset: float

    def end_after(self, error: float) -> float:
        """Error at the end of a run that has come to this one."""
        log_end = self.offset + self.slope * math.log(error + SMALLEST_ERROR)
        return math.exp(log_end) - SMALLEST_ERROR

    def most_before(self, needed: float) -> float:
        """The largest error so far from which a run ends with the error that is needed."""
        if needed + SMALLEST_ERROR <= 0:
            return 0.0
        log_before = (math.log(needed + SMALLEST_ERROR) - self.offset) / self.slope
        return math.exp(log_before) - SMALLEST_ERROR


def forecast_after(curves: Sequence[LearningCurve], done: int) -> Forecast | None:
    """What runs come to after so many epochs, from the better half of these whole curves.

    None before :data:`FIRST_STOP`, or for fewer curves than :data:`FEWEST_CURVES`.
    """
    ends = [max(curve.validation_score) for curve in curves]
    good = [
        curve
        for curve, end in zip(curves, ends, strict=True)
        if end >= np.median(ends) and len(curve.validation_score) > done
    ]
    if done < FIRST_STOP or len(good) < FEWEST_CURVES:
        return None
    now = _log_errors(max(curve.validation_score[:done]) for curve in good)
    end = _log_errors(max(curve.validation_score) for curve in good)
    spread = float(np.var(now))
    covariance = float(np.mean((now - now.mean()) * (end - end.mean())))
    slope = min(1.0, max(LEAST_SLOPE, covariance / spread)) if spread else 1.0
    return Forecast(slope, float(np.median(end - slope * now)))


def _log_errors(scores: Iterable[float]) -> NDArray[np.float64]:
    return np.log([1 - score + SMALLEST_ERROR for score in scores])


@dataclass(frozen=True)
class Race:
    """What the runs of one batch are held against.

    Attributes:
        needed: candidate id → fitness that it must reach; no entry for one that runs in full.
        forecasts: of a run's end after 1, 2, … epochs; None where too little is known.
    """

    needed: Mapping[int, float]
    forecasts: tuple[Forecast | None, ...]

    def must_reach(self, candidate: Candidate) -> tuple[float, ...]:
        """The scores that the candidate's run must reach, epoch by epoch."""
        if candidate.id not in self.needed:
            return ()
        needed = self.needed[candidate.id]
        return tuple(
            0.0 if forecast is None else max(0.0, 1 - forecast.most_before(needed))
            for forecast in self.forecasts
        )

    def evaluation(self, candidate: Candidate, curve: LearningCurve) -> Evaluation:
        """The candidate's score; of one that was stopped what it was heading for, no better than
        what it needed."""
        if curve.outcome != "stopped":
            return evaluate([curve])
        error = 1 - max(curve.validation_score)
        forecast = self.forecasts[len(curve.validation_score) - 1]
        expected = error if forecast is None else min(error, forecast.end_after(error))
        seen = evaluate([replace(curve, outcome="finished")])
        fitness = max(expected, self.needed.get(candidate.id, 0.0))
        return replace(seen, fitness=fitness, outcome="stopped")


def start_race(
    batch: Sequence[Candidate],
    elites: Sequence[Candidate],
    told: Sequence[tuple[Candidate, TrainingRun]],
    epochs: int,
) -> Race:
    """What a batch must reach; nothing where it cannot be held against anything.

    Args:
        batch: candidates that are about to be trained.
        elites: those that stand now; none while the first generation is scored.
        told: every candidate that was told before, by id, and its run.
        epochs: of a whole run.
    """
    fitness = {elite.id: elite.fitness for elite in elites}
    in_full: set[FineTunePlan] = {candidate.plan for candidate, _ in told if candidate.finished}
    if not fitness or not in_full:
        return Race({}, ())
    needed = {
        candidate.id: fitness.get(candidate.parents[0], math.inf)
        if candidate.role == "trial"
        else max(fitness.values())
        for candidate in batch
        if candidate.plan not in in_full  # costs nothing once more
    }
    ended = {run.task: run.curve for _, run in told}
    finished = [curve for curve in ended.values() if curve.outcome == "finished"]
    return Race(needed, tuple(forecast_after(finished, done) for done in range(1, epochs)))


def evolve(
    search: Optimizer,
    seed: int,
    settings: TrainingSettings,
    runs: Runs,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Candidate]:
    """Have every candidate that an optimizer asks for trained, and tell it.

    Args:
        search: asked until it is done.
        seed: of every run.
        settings: of every run.
        runs: trains.
        may_go_on: asked before each batch; when not, the search ends there.

    Yields:
        Each candidate as soon as it is told, which is in no order.
    """
    told: dict[int, tuple[Candidate, TrainingRun]] = {}
    while not search.done and may_go_on():
        batch = {candidate.id: candidate for candidate in search.ask()}
        # By id: in the order in which they finished, sums would differ in their last bits.
        earlier = [told[key] for key in sorted(told)]
        bred = any(candidate.generation for candidate in batch.values())
        elites = search.standing_elites if bred else []  # the initial population ran in full
        race = start_race(list(batch.values()), elites, earlier, settings.epochs)
        tasks = {
            key: TrainingTask(c.plan, seed, settings, must_reach=race.must_reach(c))
            for key, c in batch.items()
        }
        wanted = {key: at_once([task]) for key, task in tasks.items()}
        for key, (run,) in follow(wanted, runs, cost_rank):
            candidate = search.tell(batch[key], race.evaluation(batch[key], run.curve))
            told[key] = candidate, run
            yield candidate
