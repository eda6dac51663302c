"""What a run comes to, said by how far it has come: from this search's own curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biotune.finetuning.learning_curve import LearningCurve

LEAST_SLOPE = 0.2
"""Of a forecast; fewer than twenty curves may by chance show none."""

FIRST_STOP = 3
"""Epochs that every run is given: before, its validation score says too little."""

FEWEST_CURVES = 4
"""Good runs that must have been recorded before any is stopped."""

MADE_UP_BY = 0.05
"""Share of the recorded runs whose end was so much better than usual that a run is still given a
chance to come to the same. On recorded landscapes the median (.5) stopped nearly all candidates
that would have become elites; see docs/search.md."""

SMALLEST_ERROR = 0.002
"""Added to error rates before they are compared as ratios, so that a perfect score has one; half an
image in 250."""


@dataclass(frozen=True)
class Forecast:
    """What the error of a run so far says of its error at the end.

    log(end) = slope · log(so far) + offset, by least squares over the runs that this search has
    recorded. The slope is below one: a run that is ahead of others loses some of its lead. Taking
    it for one doubles the variance of what is left after three epochs.

    Attributes:
        slope: in (0, 1].
        offset: the median of the recorded ones.
        best_offset: of runs that made up for most, by :data:`MADE_UP_BY`.
    """

    slope: float
    offset: float
    best_offset: float

    def end_after(self, error: float) -> float:
        """Probable error at the end of a run that has come to this one."""
        return math.exp(self.offset + self.slope * math.log(error + SMALLEST_ERROR)) - (
            SMALLEST_ERROR
        )

    def most_before(self, needed: float) -> float:
        """The largest error so far from which a run may still come to the error that is needed."""
        if needed + SMALLEST_ERROR <= 0:
            return 0.0
        return math.exp((math.log(needed + SMALLEST_ERROR) - self.best_offset) / self.slope) - (
            SMALLEST_ERROR
        )


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
    offsets = end - slope * now
    best = float(np.quantile(offsets, MADE_UP_BY))
    return Forecast(slope, float(np.median(offsets)), best)


def _log_errors(scores: Iterable[float]) -> NDArray[np.float64]:
    return np.log([1 - score + SMALLEST_ERROR for score in scores])
