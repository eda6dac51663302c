"""The words that every part of BioTune shares: a fine-tuning plan, and how well it did.

Standard library only, so that the optimizer, the training code and the deployment code can all
import it without importing each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Outcome = Literal["finished", "stopped", "diverged", "infeasible"]
"""How an evaluation ended: to its end, stopped early as hopeless, with a NaN or diverged loss, or
without enough memory. Only ``finished`` is a score that may be compared, confirmed or returned."""


class FineTunePlan(Mapping[str, float | None]):
    """Which blocks of a network are trained, and how fast: block name → lr multiplier, or None.

    A block with multiplier ``m`` learns at ``m * base_lr``; a block with ``None`` is frozen. The
    blocks are in forward order, the classifier head last. Immutable, hashable, and equal to any
    other plan that says the same.

    Args:
        multipliers: block name → positive finite multiplier (typically 0.1 to 10), or ``None``.

    Raises:
        ValueError: for no blocks, an empty name, or a multiplier that is not positive and finite.

    >>> plan = FineTunePlan({"stem": None, "layer1": 2.5, "head": 1.0})
    >>> plan.trained_blocks
    ('layer1', 'head')
    """

    def __init__(self, multipliers: Mapping[str, float | None]) -> None:
        if not multipliers:
            raise ValueError("a plan needs at least one block, got none")
        checked: dict[str, float | None] = {}
        for block, multiplier in multipliers.items():
            if not isinstance(block, str) or not block:
                raise ValueError(f"a block's name must be a non-empty string, got {block!r}")
            checked[block] = None if multiplier is None else _positive(block, multiplier)
        self._multipliers: Mapping[str, float | None] = MappingProxyType(checked)

    def __getitem__(self, block: str) -> float | None:
        return self._multipliers[block]

    def __iter__(self) -> Iterator[str]:
        return iter(self._multipliers)

    def __len__(self) -> int:
        return len(self._multipliers)

    def __eq__(self, other: object) -> bool:
        # Order counts: a plan's blocks are in forward order, and to_json keeps it.
        return isinstance(other, FineTunePlan) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return f"FineTunePlan({dict(self)!r})"

    def __str__(self) -> str:
        return " ".join(f"{b}={'frozen' if m is None else f'{m:g}x'}" for b, m in self.items())

    def __reduce__(self) -> tuple[type[FineTunePlan], tuple[dict[str, float | None]]]:
        # A mappingproxy cannot be pickled, and plans travel to worker processes.
        return (FineTunePlan, (dict(self),))

    @property
    def trained_blocks(self) -> tuple[str, ...]:
        """Names of the blocks that learn, in forward order."""
        return tuple(block for block, multiplier in self.items() if multiplier is not None)

    @property
    def frozen_blocks(self) -> tuple[str, ...]:
        """Names of the blocks that stay as they are, in forward order."""
        return tuple(block for block, multiplier in self.items() if multiplier is None)

    def to_json(self) -> str:
        """The plan as a JSON object, blocks in forward order, ``null`` for frozen."""
        return json.dumps(dict(self))

    @classmethod
    def from_json(cls, text: str) -> FineTunePlan:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: if the text is not a JSON object of multipliers and nulls.
        """
        loaded = json.loads(text)
        if not isinstance(loaded, dict):
            raise ValueError(f"a plan must be a JSON object, got {type(loaded).__name__}")
        return cls(loaded)


def _positive(block: str, multiplier: object) -> float:
    numeric = isinstance(multiplier, int | float) and not isinstance(multiplier, bool)
    if not numeric or not math.isfinite(multiplier) or multiplier <= 0:  # type: ignore[arg-type, operator]
        raise ValueError(
            f"block {block!r}: the lr multiplier must be a positive finite number, or None for "
            f"frozen; got {multiplier!r}"
        )
    return float(multiplier)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Evaluation:
    """What is known of one plan after it was tried.

    Attributes:
        fitness: 1 − mean best validation score, in [0, 1] for accuracies; minimised.
        brier: multi-class Brier score on the validation images, in [0, 2]; the first tie-break.
        trained_parameters: parameters that the plan trains; the second tie-break.
        outcome: only ``finished`` evaluations are scores; all others rank after every finished one.

    Raises:
        ValueError: for a fitness that is NaN, or an unknown outcome.
    """

    fitness: float
    brier: float | None = None
    trained_parameters: int | None = None
    outcome: Outcome = "finished"

    def __post_init__(self) -> None:
        if math.isnan(self.fitness):
            raise ValueError("fitness must be a number, got NaN; use outcome='diverged' instead")
        if self.outcome not in ("finished", "stopped", "diverged", "infeasible"):
            raise ValueError(f"unknown outcome {self.outcome!r}")
        if self.outcome == "finished" and not math.isfinite(self.fitness):
            raise ValueError(f"a finished evaluation needs a finite fitness, got {self.fitness!r}")

    @property
    def failed(self) -> bool:
        """Whether there is no result at all, not even an estimate."""
        return self.outcome not in ("finished", "stopped")

    @property
    def has_result(self) -> bool:
        """Whether there is a finite score, or an estimate of it."""
        return not self.failed and math.isfinite(self.fitness)

    @property
    def rank_key(self) -> tuple[bool, float, float, float]:
        """Sorts the best first: finished before all others, then fitness, Brier, parameters."""
        return (
            self.outcome != "finished",
            self.fitness,
            math.inf if self.brier is None else self.brier,
            math.inf if self.trained_parameters is None else self.trained_parameters,
        )
