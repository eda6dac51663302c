"""What is to be trained, what became of it, and who does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from biotune.finetuning.fitness import TrainingTask
    from biotune.finetuning.learning_curve import LearningCurve


@dataclass(frozen=True)
class Job:
    """A task to be trained, and what is to be kept of it.

    Attributes:
        task: what to train.
        weights_file: where to write its best epoch's weights (safetensors), or None.
        progress_file: where to keep how far it has come, and to go on from, or None.
    """

    task: TrainingTask
    weights_file: Path | None = None
    progress_file: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: just one of a curve, an attempt without a result, or an error.

    Attributes:
        task: the job's.
        curve: of the run, which is over.
        attempt: why an attempt had no result. It says nothing of the job, which has another outcome
            to come, or has had it.
        error: what stands in the way of a result; for the caller to raise.

    Raises:
        ValueError: for none of these, or several.
    """

    task: TrainingTask
    curve: LearningCurve | None = None
    attempt: str | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        if [self.curve, self.attempt, self.error].count(None) != 2:
            raise ValueError(f"an outcome is one of curve, attempt and error, got {self}")


class Workers(Protocol):
    """Whoever trains: processes of this machine, this process, a cluster, a simulator.

    They keep nothing: what they hand back is stored by :class:`pipeline.trials.runs.TrainingRuns`
    before anybody else sees it.
    """

    def submit(self, job: Job) -> None:
        """Have a job done as soon as a worker is free."""
        ...

    def wait(self) -> list[Outcome]:
        """Wait until something becomes of the submitted jobs, and say what; at least one outcome.

        Raises nothing that concerns a job: an error is an outcome.
        """
        ...
