"""A genome as a run of MLflow: every parameter, metric and curve of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pipeline.tracking.stage_run import TrackedRun

if TYPE_CHECKING:
    from pipeline.evolving.loop import EvaluatedCandidate

_SCORES: Final = ("fitness", "brier", "trained_parameters", "trained_share")
"""Columns that are metrics."""


def tracked_genome(told: EvaluatedCandidate, row: Mapping[str, Any], base_lr: float) -> TrackedRun:
    """A candidate as an MLflow run: what it is, where it came from, every epoch of every seed.

    Args:
        told: the candidate with its runs.
        row: its row of ``evaluations.csv``.
        base_lr: the rate at multiplier 1.
    """
    candidate = told.candidate
    curves = {}
    for run in told.runs:
        curves[f"seed{run.task.seed}.train_loss"] = run.curve.train_loss
        curves[f"seed{run.task.seed}.validation_score"] = run.curve.validation_score
        curves[f"seed{run.task.seed}.validation_brier"] = run.curve.validation_brier
    trained = sum(run.curve.seconds for run in told.runs if not run.from_store)
    # What was stopped may have been trained further when its plan came again.
    repeated = told.repeat_of is not None and candidate.finished
    store_hit = repeated or all(run.from_store for run in told.runs)
    return TrackedRun(
        name=f"genome {candidate.id}",
        params={
            "genes": str([round(gene, 6) for gene in candidate.genome.to_list()]),
            "mask": "".join("0" if m is None else "1" for m in candidate.plan.values()),
            "generation": str(candidate.generation),
            "origin": candidate.origin,
            "parents": " ".join(map(str, candidate.parents)) or "none",
            "fold": str(candidate.fold),
            **{f"lr_multiplier.{b}": f"{m or 0:g}" for b, m in candidate.plan.items()},
            **{f"lr.{b}": f"{(m or 0) * base_lr:.6g}" for b, m in candidate.plan.items()},
        },
        metrics={
            **{name: row[name] for name in _SCORES if row[name] is not None},
            "seconds": sum(run.curve.seconds for run in told.runs),
        },
        curves=curves,
        tags={
            "biotune.kind": "genome",
            "biotune.candidate": str(candidate.id),
            "biotune.origin": candidate.origin,
            "biotune.outcome": row["outcome"],
            "biotune.reason": row["reason"] or "none",
            "biotune.store_hit": str(store_hit).lower(),
        },
        seconds=trained,
    )
