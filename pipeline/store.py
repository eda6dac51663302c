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
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve, stopping_epoch
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

EVALUATION_VERSION = 2
"""Raise it by hand when the meaning of a training run changes. Not a hash of the code: a comment
must not lose a search."""


class EvaluationStore:
    """Learning curves by key, in one SQLite file; only the main process writes.

    What :meth:`put` was given is on disk, with a checksum, when it returns: SQLite's write-ahead
    log with full synchronisation. Several searches may use one file at a time.

    Args:
        home: folder of the file ``evaluations.sqlite``, which is made if it is not there.
        inputs: what all tasks of a search share; see :func:`shared_inputs`.

    Raises:
        PipelineError: here and in every method, if the file is damaged or cannot be written.
    """

    def __init__(self, home: Path, inputs: Mapping[str, object]) -> None:
        self._inputs = dict(inputs)
        self._path = home / "evaluations.sqlite"
        # Each statement commits by itself. SQLite itself does not wait for another process that
        # is changing the mode of the file, so only one opens it at a time.
        with self._explained(), FileLock(home / "evaluations.lock"):
            self._database = sqlite3.connect(self._path, isolation_level=None, timeout=60)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._create_tables()

    def get(self, task: TrainingTask) -> LearningCurve | None:
        """The curve of a task, as far as its thresholds let it go; None if that is not known.

        A run that was stopped by other thresholds answers this one only if this one's would have
        stopped it as well, no later. An entry that is damaged is said, and is not known.
        """
        known = self._read(task)
        if known is None or known.outcome != "stopped":
            return None if known is None else known.raced(task.must_reach)
        epochs = stopping_epoch(known.validation_score, task.must_reach)
        return None if epochs is None else known.up_to(epochs)

    def put(self, task: TrainingTask, curve: LearningCurve) -> None:
        """Keep a finished, diverged or stopped run; it is on disk when this returns.

        A stopped run never takes the place of one that is complete, or longer. Running out of
        memory says more of the machine than of the plan: such runs are not kept.
        """
        if curve.outcome == "infeasible":
            return
        with self._explained(), self._database:
            self._database.execute("BEGIN IMMEDIATE")  # another search may be writing the same
            known = self._read(task)
            if curve.outcome == "stopped" and known is not None:
                longer = len(curve.validation_score) > len(known.validation_score)
                if known.outcome != "stopped" or not longer:
                    return
            key, text = self.key(task), json.dumps(asdict(curve)).encode()
            self._database.execute(
                "INSERT OR REPLACE INTO curves VALUES (?, ?, ?, ?)",
                (key, self._describe(task), text, _checksum(key, text)),
            )

    def add_attempt(self, task: TrainingTask, reason: str) -> None:
        """Note that a run was lost or failed, and is tried again. It is no score."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._explained():
            self._database.execute(
                "INSERT INTO attempts VALUES (?, ?, ?)", (now, self._describe(task), reason)
            )

    def key(self, task: TrainingTask) -> str:
        """What a task's curve is kept under, in hexadecimal; it also names the task elsewhere."""
        return hashlib.sha256(self._describe(task).encode()).hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _create_tables(self) -> None:
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS curves "
            "(key TEXT PRIMARY KEY, task TEXT, curve BLOB, checksum TEXT)"
        )
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS attempts (time TEXT, task TEXT, reason TEXT)"
        )
        columns = self._database.execute("SELECT name FROM pragma_table_info('curves')")
        if ("checksum",) not in columns.fetchall():  # written before there were any
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute("ALTER TABLE curves ADD COLUMN checksum TEXT")
                rows = self._database.execute("SELECT key, CAST(curve AS BLOB) FROM curves")
                self._database.executemany(
                    "UPDATE curves SET checksum = ? WHERE key = ?",
                    [(_checksum(key, text), key) for key, text in rows.fetchall()],
                )

    def _read(self, task: TrainingTask) -> LearningCurve | None:
        key = self.key(task)
        with self._explained():
            row = self._database.execute(
                # As bytes: what is damaged may be no text.
                "SELECT CAST(curve AS BLOB), checksum FROM curves WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        if row[1] != _checksum(key, row[0]):
            log.warning(
                "%s: an entry is damaged (its checksum differs): it is trained again (%s)",
                self._path,
                task.plan,
            )
            return None
        return _curve_from_json(row[0])

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
                f"the evaluation store {self._path} cannot be used ({error}); it is damaged: move "
                "it away, and what it held is trained again"
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
        "version": EVALUATION_VERSION,
        "data": fingerprint,
        "backbone": backbone,
        "weights": weights,
        "device": torch.device(compute.device).type,
        "precision": compute.precision,
        "compile": compute.compile,
        "torch": torch.__version__,
    }


def _checksum(key: str, text: bytes) -> str:
    """Of an entry and its place, so that one entry cannot pass for another."""
    return hashlib.sha256(key.encode() + text).hexdigest()


def _curve_from_json(text: bytes) -> LearningCurve:
    fields: dict[str, Any] = json.loads(text)
    for name in ("train_loss", "validation_score", "validation_brier"):
        fields[name] = tuple(fields[name])
    return LearningCurve(**fields)
