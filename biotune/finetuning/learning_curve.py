"""What a fine-tuning run showed, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from biotune.plan import Outcome


@dataclass(frozen=True)
class LearningCurve:
    """What one run showed, epoch by epoch.

    Attributes:
        train_loss: mean cross-entropy over the epoch's batches.
        validation_score: by the settings' metric, in [0, 1], higher is better.
        validation_brier: multi-class Brier score, in [0, 2].
        trained_parameters: how many parameters the plan trained.
        outcome: ``finished``, ``stopped`` (as hopeless, before its own end), ``diverged`` (a loss
            that is no number) or ``infeasible`` (memory).
        seconds: wall time; the one field that differs between repetitions.
    """

    train_loss: tuple[float, ...]
    validation_score: tuple[float, ...]
    validation_brier: tuple[float, ...]
    trained_parameters: int
    outcome: Outcome
    seconds: float

    @property
    def best_epoch(self) -> int:
        """Index of the first epoch with the best validation score; the lower Brier if equal."""
        keys = [(-s, b) for s, b in zip(self.validation_score, self.validation_brier, strict=True)]
        return keys.index(min(keys))

    def raced(self, must_reach: Sequence[float]) -> LearningCurve:
        """What the same run would have shown, had it been trained with these thresholds.

        Args:
            must_reach: as :func:`~biotune.finetuning.training.fit` takes it.
        """
        epochs = stopping_epoch(self.validation_score, must_reach)
        at_its_end = epochs is not None and epochs >= len(self.validation_score)
        if epochs is None or (at_its_end and self.outcome != "diverged"):
            return self  # a run that diverged went on for one more epoch, of which there is nothing
        return self.up_to(epochs)

    def answer(self, must_reach: Sequence[float]) -> LearningCurve | None:
        """What is known from this of the same run with these thresholds; None if it would have gone
        further than this one, which other thresholds may have stopped."""
        if self.outcome != "stopped":
            return self.raced(must_reach)
        epochs = stopping_epoch(self.validation_score, must_reach)
        return None if epochs is None else self.up_to(epochs)

    def up_to(self, epochs: int) -> LearningCurve:
        """The curve of the run, had it been stopped after this many epochs."""
        return replace(
            self,
            train_loss=self.train_loss[:epochs],
            validation_score=self.validation_score[:epochs],
            validation_brier=self.validation_brier[:epochs],
            outcome="stopped",
            seconds=self.seconds * epochs / len(self.train_loss),
        )


def stopping_epoch(scores: Sequence[float], must_reach: Sequence[float]) -> int | None:
    """After how many epochs a run is hopeless; None if it is not.

    Args:
        scores: validation score after each epoch.
        must_reach: the best score that must have been seen after each epoch, from the first on;
            beyond its end nothing is asked for. 0 asks for nothing.
    """
    best = 0.0
    for epoch, (score, needed) in enumerate(zip(scores, must_reach, strict=False), start=1):
        best = max(best, score)
        if best < needed:
            return epoch
    return None
