"""Training runs without training: curves that are a plain function of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.training import LearningCurve, TrainingSettings
from biotune.plan import FineTunePlan
from pipeline.runs import TrainingRun

BLOCKS = ("stem", "middle", "top", "head")


def curve(accuracy: float, trained_parameters: int = 10, seconds: float = 0.5) -> LearningCurve:
    """Two epochs, the second the better one."""
    return LearningCurve(
        train_loss=(1.0, 0.5),
        validation_accuracy=(accuracy / 2, accuracy),
        validation_brier=(1.0, 1 - accuracy),
        trained_parameters=trained_parameters,
        outcome="finished",
        seconds=seconds,
    )


def task(plan: dict[str, float | None] | None = None, seed: int = 0) -> TrainingTask:
    """A task for the four blocks above."""
    chosen = plan or {"stem": None, "middle": 2.0, "top": None, "head": 1.0}
    return TrainingTask(FineTunePlan(chosen), seed, TrainingSettings(2, 1, 4, 0.001))


class Trainings:
    """Stands for store and workers: answers tasks by a function, and remembers them."""

    def __init__(self, answer: Callable[[TrainingTask], LearningCurve]) -> None:
        self._answer = answer
        self.asked: list[TrainingTask] = []

    def __call__(self, tasks: Iterable[TrainingTask]) -> Iterator[TrainingRun]:
        # Backwards, because no order is promised.
        for one in reversed(list(dict.fromkeys(tasks))):
            known = one in self.asked
            self.asked.append(one)
            yield TrainingRun(one, self._answer(one), from_store=known)
