"""Checks of what a search is given: what was expected, and what came instead."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

from biotune.plan import Evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_blocks(blocks: Sequence[str]) -> None:
    """Raises ``ValueError`` unless these are names of blocks, at least one and all different."""
    if isinstance(blocks, str) or not blocks or len(set(blocks)) != len(blocks):
        raise ValueError(f"blocks must be at least one name, all different, got {blocks!r}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises ``ValueError`` unless the value is a whole number, and not too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_not_negative(name: str, value: float) -> None:
    """Raises ``ValueError`` unless the value is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def check_fitness(candidate_id: int, fitness: float | Evaluation) -> Evaluation:
    """A told fitness as an evaluation; raises ``ValueError`` unless it is a finite number."""
    if isinstance(fitness, Evaluation):
        return fitness
    if not isinstance(fitness, Real) or not math.isfinite(fitness):
        raise ValueError(
            f"candidate {candidate_id}: expected a finite number as fitness, got {fitness!r}; tell "
            "a failed run as an Evaluation with outcome='diverged'"
        )
    return Evaluation(float(fitness))
