"""The evaluation store: what was trained once is never trained again.

Content-addressed: the key is a hash of everything that decides a training run's outcome, the value
its learning curve. A search that was stopped resumes by asking again and finding its answers here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.errors import PipelineError
from pipeline.trials.code_version import code_hash
from pipeline.trials.store_file import checksum, open_store

log = logging.getLogger(__name__)


class EvaluationStore:
    """Learning curves by key, in one SQLite file; only the main process writes.

    What :meth:`put` was given is on disk, with a checksum, when it returns: SQLite's write-ahead
    log with full synchronisation. Several searches may use one file at a time. A file that is
    damaged is mended when it is opened, see :mod:`pipeline.trials.store_file`.

    Args:
        home: folder of the file ``evaluations.sqlite``, which is made if it is not there.
        inputs: what all tasks of a search share; see :func:`shared_inputs`.

    Raises:
        PipelineError: here and in every method, if the file cannot be used: it cannot be written,
            is damaged while it is open, or was written by a newer BioTune.
    """

    def __init__(self, home: Path, inputs: Mapping[str, object]) -> None:
        self._inputs = dict(inputs)
        self._path = home / "evaluations.sqlite"
        # SQLite itself does not wait for another process that is changing the mode of the file, and
        # mending it replaces it: only one opens it at a time.
        with self._explained(), FileLock(home / "evaluations.lock"):
            self._database = open_store(self._path)

    def get(self, task: TrainingTask) -> LearningCurve | None:
        """The curve of a task, as far as its thresholds let it go; None if that is not known.

        A run that was stopped by other thresholds answers this one only if this one's would have
        stopped it as well, no later. An entry that is damaged is said, and is not known.
        """
        stored = self._read(task)
        return None if stored is None else stored.answer(task.must_reach)

    def put(self, task: TrainingTask, curve: LearningCurve) -> None:
        """Keep a finished, diverged or stopped run; it is on disk when this returns.

        A stopped run never takes the place of one that is complete, or longer. Running out of
        memory says more of the machine than of the plan: such runs are not kept.
        """
        if curve.outcome == "infeasible":
            return
        with self._explained(), self._database:
            self._database.execute("BEGIN IMMEDIATE")  # another search may be writing the same
            stored = self._read(task)
            if curve.outcome == "stopped" and stored is not None:
                longer = len(curve.validation_score) > len(stored.validation_score)
                if stored.outcome != "stopped" or not longer:
                    return
            key, text = self.key(task), json.dumps(asdict(curve)).encode()
            self._database.execute(
                "INSERT OR REPLACE INTO curves (key, task, curve, checksum) VALUES (?, ?, ?, ?)",
                (key, self._describe(task), text, checksum(key, text).decode()),
            )

    def add_attempt(self, task: TrainingTask, reason: str) -> None:
        """Note that a run was lost or failed, and is tried again. It is no score."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._explained():
            self._database.execute(
                "INSERT INTO attempts (time, task, reason) VALUES (?, ?, ?)",
                (now, self._describe(task), reason),
            )

    def key(self, task: TrainingTask) -> str:
        """What a task's curve is kept under, in hexadecimal; it also names the task elsewhere."""
        return hashlib.sha256(self._describe(task).encode()).hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _read(self, task: TrainingTask) -> LearningCurve | None:
        key = self.key(task)
        with self._explained():
            row = self._database.execute(
                # As bytes: what is damaged may be no text.
                "SELECT CAST(curve AS BLOB), CAST(checksum AS BLOB) FROM curves WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        if row[0] is None or row[1] != checksum(key, row[0]):
            log.warning(
                "%s: an entry is damaged (its checksum differs): it is trained again (%s)",
                self._path,
                task.plan,
            )
            return None
        return self._curve(row[0])

    def _curve(self, text: bytes) -> LearningCurve:
        stored: dict[str, Any] = json.loads(text)
        wanted = {field.name for field in fields(LearningCurve)}
        if stored.keys() != wanted:
            different = ", ".join(sorted(stored.keys() ^ wanted))
            raise PipelineError(
                f"{self._path} holds a curve that another BioTune has written ({different}): use "
                "that one, or another BIOTUNE_HOME"
            )
        for name in ("train_loss", "validation_score", "validation_brier"):
            stored[name] = tuple(stored[name])
        return LearningCurve(**stored)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What SQLite says, with the file and what to do about it."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise PipelineError(
                f"the evaluation store {self._path} cannot be used ({error}). Make sure that its "
                "folder can be written and has free space, and run again: what had finished is kept"
            ) from error
        except sqlite3.DatabaseError as error:
            raise PipelineError(
                f"the evaluation store {self._path} cannot be used ({error}); it is damaged: run "
                "again, and it is mended from what can be read"
            ) from error

    def _describe(self, task: TrainingTask) -> str:
        described = {**self._inputs, **asdict(task), "plan": list(task.plan.items())}
        del described["must_reach"]  # says how far a run goes, not what it shows until there
        return json.dumps(described, sort_keys=True)


def shared_inputs(
    fingerprint: str, backbone: str, weights: str, compute: Compute
) -> dict[str, object]:
    """What decides the outcome of every task alike.

    Args:
        fingerprint: of the prepared images.
        backbone: name of the network.
        weights: identity of its pretrained weights, not the path.
        compute: device and precision.
    """
    return {
        "code": code_hash(),
        "data": fingerprint,
        "backbone": backbone,
        "weights": weights,
        "device": torch.device(compute.device).type,
        "precision": compute.precision,
        "compile": compute.compile,
        "torch": torch.__version__,
        **{
            package: version(package)
            for package in ("numpy", "timm", "torchmetrics", "torchvision")
        },
    }
