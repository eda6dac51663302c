"""``best_plan.json``: what the search stage hands to the finetune stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biotune.finetuning.compute import Compute
from biotune.plan import FineTunePlan
from pipeline.artifacts import read_json, write_json

if TYPE_CHECKING:
    from pipeline.evolving.loop import SearchResult


def write_best_plan(path: Path, result: SearchResult, compute: Compute) -> None:
    """Write the winner, and the best recipe that it was held against.

    Args:
        path: of the file.
        result: of the search.
        compute: that it trained with; what ``precision: auto`` meant is written down.
    """
    winner, recipe = result.winner, result.best_recipe
    write_json(
        path,
        {
            "blocks": dict(winner.plan),
            "genome": winner.candidate.genome.to_list() if winner.candidate else None,
            "fitness": winner.evaluation.fitness,
            "name": winner.name,
            "precision": compute.precision,
            "best_recipe": {
                "blocks": dict(recipe.plan),
                "fitness": recipe.evaluation.fitness,
                "name": recipe.name,
            },
        },
    )


def read_plans(best_plan: Path, blocks: Sequence[str]) -> dict[str, tuple[str, FineTunePlan]]:
    """Role → name and plan, checked against the network before anything is trained.

    Args:
        best_plan: file that the search stage wrote.
        blocks: of the network.

    Raises:
        ValueError, OSError: if it cannot be used.
    """
    content = read_json(best_plan, made_by="search")
    entries: dict[str, Any] = {"winner": content, "best_recipe": content.get("best_recipe")}
    plans = {}
    for role, entry in entries.items():
        try:
            name, plan = str(entry["name"]), FineTunePlan(dict(entry["blocks"]))
            if tuple(plan) != tuple(blocks):
                raise ValueError(f"its blocks are {list(plan)}, but the network's {list(blocks)}")
            if not plan.trained_blocks:
                raise ValueError("it trains no block")
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{best_plan}: there is no usable plan of the {role} ({what}); run the search "
                "stage again"
            ) from error
        plans[role] = (name, plan)
    return plans


def say_other_precision(best_plan: Path, compute: Compute) -> None:
    """Print that the search was trained in another precision than this machine's, if it was.

    What ``precision: auto`` means depends on the machine; results are not quite the same.
    """
    searched = read_json(best_plan, made_by="search").get("precision", compute.precision)
    if searched != compute.precision:
        print(
            f"The plans were searched in {searched}; this machine trains in {compute.precision}. "
            f"runtime.precision: {searched} would train as the search did."
        )
