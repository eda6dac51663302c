"""Workers that train nothing: they say what a recorded landscape knows of a run, and count what it
would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.landscapes.landscape import SimulatedLandscape
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.trials.jobs import Job, Outcome
from pipeline.trials.runs import TrainingRuns


class SimulatedWorkers:
    """Answers jobs, one at a time and in order, from the recording with a job's schedule.

    Args:
        landscapes: recordings of the same images and network on schedules of their own.
        replicate: number of the experiment: with each, images are divided and networks initialised
            anew.

    Attributes:
        cpu_seconds, runs, epochs: what all jobs so far cost.
    """

    def __init__(self, landscapes: Sequence[SimulatedLandscape], replicate: int) -> None:
        self.cpu_seconds, self.runs, self.epochs = 0.0, 0, 0
        self._schedules = {
            landscape.settings.epochs: (landscape, landscape.deviations(replicate))
            for landscape in landscapes
        }
        self._submitted: list[Job] = []

    def submit(self, job: Job) -> None:
        """Have a job answered.

        Raises:
            ValueError: if weights or progress are to be kept: there are none.
        """
        if job.weights_file is not None or job.progress_file is not None:
            raise ValueError(f"a simulated run has no weights and no progress, got {job}")
        self._submitted.append(job)

    def wait(self) -> list[Outcome]:
        """The next outcome."""
        task = self._submitted.pop(0).task
        try:
            if task.settings.epochs not in self._schedules:
                raise ValueError(
                    f"recorded are schedules of {', '.join(map(str, self._schedules))} epochs, "
                    f"got {task.settings}"
                )
            landscape, deviations = self._schedules[task.settings.epochs]
            curve = landscape.curve(task, deviations)
        except ValueError as error:
            return [Outcome(task, error=error)]
        self.cpu_seconds += curve.seconds
        self.runs += 1
        self.epochs += len(curve.validation_score)
        return [Outcome(task, curve=curve)]


class MemoryStore:
    """Remembers the curves of one search, as :class:`pipeline.trials.store.EvaluationStore`
    does."""

    def __init__(self) -> None:
        self._curves: dict[TrainingTask, LearningCurve] = {}

    def get(self, task: TrainingTask) -> LearningCurve | None:
        """The curve of a task, as far as its thresholds let it go; None if that is not known."""
        stored = self._curves.get(replace(task, must_reach=()))
        return None if stored is None else stored.answer(task.must_reach)

    def put(self, task: TrainingTask, curve: LearningCurve) -> None:
        """Keep a run; a stopped one never takes the place of one that is complete, or longer."""
        whole = replace(task, must_reach=())
        stored = self._curves.get(whole)
        if stored is None or len(stored.validation_score) < len(curve.validation_score):
            self._curves[whole] = curve

    def add_attempt(self, task: TrainingTask, reason: str) -> None:
        """Note a run without a result; simulated ones have one."""
        raise NotImplementedError(f"a simulated run always has a result: {reason} ({task})")

    def key(self, task: TrainingTask) -> str:
        """Names a task."""
        return repr(task)


class SimulatedRuns(TrainingRuns):
    """What a search gets its runs from.

    Args:
        landscapes, replicate: see :class:`SimulatedWorkers`.

    Attributes:
        workers: count the cost.
    """

    def __init__(self, landscapes: Sequence[SimulatedLandscape], replicate: int) -> None:
        self.workers = SimulatedWorkers(landscapes, replicate)
        super().__init__(MemoryStore(), self.workers)
