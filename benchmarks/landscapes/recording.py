"""A recording: a CSV file of one row a run, written whole or not at all."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TextIO, cast

from benchmarks.landscapes.plans import Run
from biotune.data.division import Division
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan, Outcome

FIXED = ("images", "backbone", "weights", "precision")
"""What all rows of a file have in common; ``images`` begins the prepared dataset's fingerprint."""
MADE_BY = (*FIXED, "torch", "instruction_set", "code")
CURVES = ("train_loss", "validation_score", "validation_brier")
COLUMNS = (
    *("plan", "kind", "seed", "division", "epochs", "batch_size", "base_lr", "outcome", *CURVES),
    *("best_epoch", "test_score", "trained_parameters", "cpu_seconds", *MADE_BY),
)


@dataclass(frozen=True)
class RecordedRun:
    """A run with all that is known of it.

    Attributes:
        run: what was trained, without early stopping: the curve under a smaller patience is a
            beginning of this one.
        curve: its numbers in five significant digits; its seconds are CPU seconds of the training
            alone, on one thread.
        best_epoch: index of the best epoch, by the numbers before they were rounded.
        test_score: balanced accuracy of the best epoch on the test split; None without an epoch.
        made_by: what it was trained with, under the names of :data:`MADE_BY`.
    """

    run: Run
    curve: LearningCurve
    best_epoch: int | None
    test_score: float | None
    made_by: Mapping[str, str]

    def to_row(self) -> dict[str, object]:
        """Under the names of :data:`COLUMNS`."""
        task, curve, settings = self.run.task, self.curve, self.run.task.settings
        resampled = task.division.resampled
        return {
            "plan": plan_text(task.plan),
            "kind": self.run.kind,
            "seed": task.seed,
            "division": "prepared" if resampled is None else f"resampled {resampled}",
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "base_lr": settings.base_lr,
            "outcome": curve.outcome,
            **{name: " ".join(f"{v:.5g}" for v in getattr(curve, name)) for name in CURVES},
            "best_epoch": self.best_epoch,
            "test_score": None if self.test_score is None else f"{self.test_score:.5g}",
            "trained_parameters": curve.trained_parameters,
            "cpu_seconds": f"{curve.seconds:.2f}",
            **self.made_by,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> RecordedRun:
        """What :meth:`to_row` wrote."""
        resampled = row["division"].removeprefix("resampled ")
        division = Division(resampled=None if resampled == "prepared" else int(resampled))
        loss, score, brier = (tuple(map(float, row[name].split())) for name in CURVES)
        epochs = int(row["epochs"])
        settings = TrainingSettings(epochs, epochs, int(row["batch_size"]), float(row["base_lr"]))
        task = TrainingTask(parse_plan(row["plan"]), int(row["seed"]), settings, division)
        return cls(
            run=Run(row["kind"], task),
            curve=LearningCurve(
                train_loss=loss,
                validation_score=score,
                validation_brier=brier,
                trained_parameters=int(row["trained_parameters"]),
                outcome=cast("Outcome", row["outcome"]),
                seconds=float(row["cpu_seconds"]),
            ),
            best_epoch=int(row["best_epoch"]) if row["best_epoch"] else None,
            test_score=float(row["test_score"]) if row["test_score"] else None,
            made_by={name: row[name] for name in MADE_BY},
        )


def plan_text(plan: FineTunePlan) -> str:
    """A plan in few letters, such as ``stem=- blocks.0=5 classifier=1``."""
    return " ".join(f"{block}={'-' if m is None else f'{m:g}'}" for block, m in plan.items())


def parse_plan(text: str) -> FineTunePlan:
    """Read what :func:`plan_text` wrote."""
    pairs = (word.rsplit("=", 1) for word in text.split())
    return FineTunePlan({block: None if m == "-" else float(m) for block, m in pairs})


def read_recording(file: Path) -> list[RecordedRun]:
    """All runs of a recording, in the order in which they ended; none of a torn last line.

    Raises:
        ValueError: if the file is no recording.
    """
    return _runs_of(file.read_text(encoding="utf-8"), file)


class Recording:
    """A recording that is added to.

    Args:
        stream: the file, open to append.
        runs: that it holds.

    Attributes:
        curves: task → curve, of all runs that it holds.
    """

    def __init__(self, stream: TextIO, runs: Sequence[RecordedRun]) -> None:
        self._stream = stream
        self.curves = {recorded.run.task: recorded.curve for recorded in runs}

    def append(self, recorded: RecordedRun) -> None:
        """Add a run, whole, and on disk when this returns."""
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(recorded.to_row())
        self._stream.write(line.getvalue())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        # As it will be read: what is decided by it must not hang on digits that are not kept.
        (kept,) = _runs_of(",".join(COLUMNS) + "\n" + line.getvalue(), Path(self._stream.name))
        self.curves[kept.run.task] = kept.curve


@contextmanager
def open_recording(file: Path, made_by: Mapping[str, str]) -> Iterator[Recording]:
    """Open a recording to go on with, or a new one; a torn last line is removed.

    Raises:
        ValueError: if the file is no recording, or one of other images, or another network.
        BlockingIOError: if another process is writing it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8", newline="") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another recorder is writing {file}: wait for it") from error
        runs = read_recording(file)
        for recorded, name in product(runs, FIXED):
            if recorded.made_by[name] != made_by[name]:
                raise ValueError(
                    f"{file} was recorded with the {name} {recorded.made_by[name]}, not "
                    f"{made_by[name]}: name another file for these"
                )
        whole = file.read_bytes().rfind(b"\n") + 1
        stream.truncate(whole)
        if not whole:
            stream.write(",".join(COLUMNS) + "\n")
        yield Recording(stream, runs)


def _runs_of(text: str, file: Path) -> list[RecordedRun]:
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    reader = csv.DictReader(lines)
    if lines and tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{file} is no recording: its first line must be {','.join(COLUMNS)}")
    return [RecordedRun.from_row(row) for row in reader]
