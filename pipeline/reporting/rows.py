"""A search's candidates and confirmations as rows of CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from biotune.plan import FineTunePlan
from pipeline.tracking.genome import reason_of, scores_of

if TYPE_CHECKING:
    from pipeline.evolving.confirmation import Confirmation
    from pipeline.evolving.loop import EvaluatedCandidate


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
        **scores_of(candidate.evaluation, total_parameters),
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
        **scores_of(confirmation.evaluation, total_parameters),
        "reason": reason_of(confirmation.runs, confirmation.evaluation),
        **_multipliers(confirmation.plan),
    }


def _multipliers(plan: FineTunePlan) -> dict[str, Any]:
    return {f"lr_multiplier.{block}": multiplier for block, multiplier in plan.items()}
