"""Known fine-tuning recipes as genomes, so that a search cannot lose to one that it never tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from biotune.evolution.genome import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from biotune.evolution.genome import Genome, HeadMode


@dataclass(frozen=True)
class Recipe:
    """A way of fine-tuning that people use, and the genome that decodes to it."""

    name: str
    genome: Genome


def recipes(blocks: Sequence[str], head: HeadMode = "evolved") -> list[Recipe]:
    """The known recipes for these blocks, the most promising first.

    Full fine-tuning at 1× and 3×, the middle third of the blocks alone at 5×, linear probing (the
    head alone at 1×), the first and the last third alone at 5× (surgical fine-tuning, Lee et al.
    2023), and rates that rise with depth from 0.1× to 3× in equal ratios. The thirds are cut at
    round(n/3) and round(2n/3). Where the head is always trained, "alone" is beside the head at 1×.
    With one or two blocks, recipes without a block and those that repeat an earlier one are
    left out.

    Raises:
        ValueError: for no blocks, a name that occurs twice, or an unknown ``head``.
    """
    n = len(blocks)
    if n == 0:
        raise ValueError("recipes need at least one block, got none")
    first_cut, second_cut = round(n / 3), round(2 * n / 3)
    rates: dict[str, dict[int, float]] = {
        "full 1x": dict.fromkeys(range(n), 1.0),
        "full 3x": dict.fromkeys(range(n), 3.0),
        "middle third 5x": dict.fromkeys(range(first_cut, second_cut), 5.0),
        "linear probing": {n - 1: 1.0},
        "first third 5x": dict.fromkeys(range(first_cut), 5.0),
        "last third 5x": dict.fromkeys(range(second_cut, n), 5.0),
        "rising 0.1x to 3x": dict(enumerate(np.geomspace(0.1, 3.0, n).tolist())),
    }
    distinct: dict[object, Recipe] = {}
    for name, multipliers in rates.items():
        if not multipliers:
            continue
        genome = encode(multipliers, n, head)
        distinct.setdefault(decode(genome, blocks, head), Recipe(name, genome))
    return list(distinct.values())
