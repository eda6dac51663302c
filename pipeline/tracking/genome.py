"""A genome as a run of MLflow: every parameter, metric and curve of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from biotune.plan import Evaluation
from pipeline.tracking.stage_run import TrackedRun

if TYPE_CHECKING:
    from pipeline.evolving.loop import EvaluatedCandidate
    from pipeline.trials.runs import TrainingRun


def tracked_genome(told: EvaluatedCandidate, base_lr: float, total_parameters: int) -> TrackedRun:
    """A candidate as an MLflow run: what it is, where it came from, every epoch of every seed."""
    candidate = told.candidate
    scores = scores_of(candidate.evaluation, total_parameters)
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
            **{k: v for k, v in scores.items() if isinstance(v, int | float)},
            "seconds": sum(run.curve.seconds for run in told.runs),
        },
        curves=curves,
        tags={
            "biotune.kind": "genome",
            "biotune.candidate": str(candidate.id),
            "biotune.origin": candidate.origin,
            "biotune.outcome": str(scores["outcome"]),
            "biotune.reason": reason_of(told.runs, candidate.evaluation) or "none",
            "biotune.store_hit": str(store_hit).lower(),
        },
        seconds=trained,
    )


def scores_of(evaluation: Evaluation | None, total_parameters: int) -> dict[str, Any]:
    if evaluation is None:
        raise ValueError("expected a candidate that was told its evaluation, got one without")
    trained = evaluation.trained_parameters or 0
    return {
        "fitness": evaluation.fitness,
        "brier": evaluation.brier,
        "outcome": evaluation.outcome,
        "trained_parameters": trained,
        "trained_share": trained / total_parameters,
    }


def reason_of(runs: Sequence[TrainingRun], evaluation: Evaluation | None) -> str | None:
    """Why a candidate has no score of its own; None if it has."""
    if evaluation is None or evaluation.outcome == "finished":
        return None
    for run in runs:
        epochs = len(run.curve.validation_score)
        if run.curve.outcome == evaluation.outcome:
            said = {
                "diverged": f"the loss of epoch {epochs + 1} was no number",
                "infeasible": "out of memory, also with empty caches",
                "stopped": f"hopeless after {epochs} epochs",
            }
            return f"seed {run.task.seed}: {said[evaluation.outcome]}"
    return f"hopeless after {len(runs)} of its seeds"
