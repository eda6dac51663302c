"""The evaluation store: what was trained once is never trained again.

Content-addressed: the key is a hash of everything that decides a training run's outcome, the value
its learning curve. A search that was stopped resumes by asking again and finding its answers here.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve, stopping_epoch
from pipeline.errors import PipelineError

EVALUATION_VERSION = 2
"""Raise it by hand when the meaning of a training run changes. Not a hash of the code: a comment
must not lose a search."""


class EvaluationStore:
    """Learning curves by key, in one SQLite file; only the main process writes.

    Args:
        home: folder of the file ``evaluations.sqlite``, which is made if it is not there.
        inputs: what all tasks of a search share; see :func:`shared_inputs`.
    """

    def __init__(self, home: Path, inputs: Mapping[str, object]) -> None:
        self._inputs = dict(inputs)
        path = home / "evaluations.sqlite"
        # Each statement commits by itself; WAL lets two searches use one home at a time.
        self._database = sqlite3.connect(path, isolation_level=None, timeout=60)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS curves (key TEXT PRIMARY KEY, task TEXT, curve TEXT)"
            )
        except sqlite3.DatabaseError as error:
            raise PipelineError(
                f"the evaluation store {path} cannot be used ({error}); if it is damaged, move it "
                "away, and what it held is trained again"
            ) from error

    def get(self, task: TrainingTask) -> LearningCurve | None:
        """The curve of a task, as far as its thresholds let it go; None if that is not known.

        A run that was stopped by other thresholds answers this one only if this one's would have
        stopped it as well, no later.
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
        self._database.execute("BEGIN IMMEDIATE")  # another search may be writing the same
        with self._database:
            known = self._read(task)
            if curve.outcome == "stopped" and known is not None:
                longer = len(curve.validation_score) > len(known.validation_score)
                if known.outcome != "stopped" or not longer:
                    return
            self._database.execute(
                "INSERT OR REPLACE INTO curves VALUES (?, ?, ?)",
                (self._key(task), self._describe(task), json.dumps(asdict(curve))),
            )

    def _read(self, task: TrainingTask) -> LearningCurve | None:
        row = self._database.execute(
            "SELECT curve FROM curves WHERE key = ?", (self._key(task),)
        ).fetchone()
        return None if row is None else _curve_from_json(row[0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _describe(self, task: TrainingTask) -> str:
        described = {**self._inputs, **asdict(task), "plan": list(task.plan.items())}
        del described["must_reach"]  # says how far a run goes, not what it shows until there
        return json.dumps(described, sort_keys=True)

    def _key(self, task: TrainingTask) -> str:
        return hashlib.sha256(self._describe(task).encode()).hexdigest()


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


def _curve_from_json(text: str) -> LearningCurve:
    fields: dict[str, Any] = json.loads(text)
    for name in ("train_loss", "validation_score", "validation_brier"):
        fields[name] = tuple(fields[name])
    return LearningCurve(**fields)
