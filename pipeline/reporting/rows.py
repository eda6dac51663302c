"""A search's candidates and confirmations as rows of CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from biotune.plan import Evaluation, FineTunePlan

if TYPE_CHECKING:
    from pipeline.evolving.confirmation import Confirmation
    from pipeline.evolving.loop import EvaluatedCandidate
    from pipeline.trials.runs import TrainingRun


def evaluation_row(told: EvaluatedCandidate, total_parameters: int) -> dict[str, Any]:
    """One row of ``evaluations.csv``: a function of the search's inputs alone.

    So it does not say what the store knew from an earlier search, nor how long anything took; that
    is in MLflow. ``repeat_of`` is the earlier candidate of this search with the same plan and fold.
    """
    candidate = told.candidate
    genes = zip(candidate.plan, candidate.genome.importances.tolist(), strict=True)
    return {
        "id": candidate.id,
        "generation": candidate.generation,
        "origin": candidate.origin,
        "parents": " ".join(map(str, candidate.parents)),
        "fold": candidate.fold,
        **_scores(candidate.evaluation, total_parameters),
        "reason": reason_of(told.runs, candidate.evaluation),
        "runs": len(told.runs),
        "epochs": told.epochs,
        "repeat_of": told.repeat_of,
        **_multipliers(candidate.plan),
        **{f"importance.{block}": gene for block, gene in genes},
        "threshold": candidate.genome.threshold,
    }


def confirmation_row(confirmation: Confirmation, total_parameters: int) -> dict[str, Any]:
    """One row of ``confirmations.csv``."""
    return {
        "name": confirmation.name,
        "is_recipe": confirmation.recipe,
        "seeds": len(confirmation.runs),
        **_scores(confirmation.evaluation, total_parameters),
        "reason": reason_of(confirmation.runs, confirmation.evaluation),
        **_multipliers(confirmation.plan),
    }


def _scores(evaluation: Evaluation | None, total_parameters: int) -> dict[str, Any]:
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


def _multipliers(plan: FineTunePlan) -> dict[str, Any]:
    return {f"lr_multiplier.{block}": multiplier for block, multiplier in plan.items()}
