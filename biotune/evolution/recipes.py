"""Known fine-tuning recipes as genomes, so that a search cannot lose to one that it never tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from biotune.evolution.genome import decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from biotune.evolution.genome import Genome, HeadMode

MOST_RECIPES: Final = 6
"""Recipes after which no more are proposed as children. The surgical scan's members, which are
recipes, too, do not count; an initial population of 14 or more opens with seven."""


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
    n, thirds = len(blocks), _thirds(len(blocks))
    rates: dict[str, dict[int, float]] = {
        "full 1x": dict.fromkeys(range(n), 1.0),
        "full 3x": dict.fromkeys(range(n), 3.0),
        "middle third 5x": dict.fromkeys(thirds["middle"], 5.0),
        "linear probing": {n - 1: 1.0},
        "first third 5x": dict.fromkeys(thirds["first"], 5.0),
        "last third 5x": dict.fromkeys(thirds["last"], 5.0),
        "rising 0.1x to 3x": dict(enumerate(np.geomspace(0.1, 3.0, n).tolist())),
    }
    return _distinct(rates, blocks, head)


def recipe_grid(blocks: Sequence[str], head: HeadMode = "evolved") -> list[Recipe]:
    """The known recipes, their rates tuned as a practitioner would tune them.

    Full fine-tuning and linear probing at 0.3, 1, 3 and 10×; each third of the blocks alone at 2
    and 5×; layer-wise decay, by .8 or .65 a block, from 1, 3 or 10× at the head and at least 0.1×;
    full fine-tuning at 0.3 and 1× with the head at ten times that. Thirds, "alone" and what is left
    out are as in :func:`recipes`.

    Raises:
        ValueError: for no blocks, a name that occurs twice, or an unknown ``head``.
    """
    n, thirds = len(blocks), _thirds(len(blocks))
    last = n - 1
    rates: dict[str, dict[int, float]] = {}
    for rate in (1.0, 3.0, 0.3, 10.0):
        rates[f"full {rate:g}x"] = dict.fromkeys(range(n), rate)
        rates[f"linear probing {rate:g}x"] = {last: rate}
    for rate in (5.0, 2.0):
        for name, third in thirds.items():
            rates[f"{name} third {rate:g}x"] = dict.fromkeys(third, rate)
    for decay in (0.8, 0.65):
        for top in (3.0, 1.0, 10.0):
            falling = {i: max(0.1, top * decay ** (last - i)) for i in range(n)}
            rates[f"layer-wise decay {decay:g} from {top:g}x"] = falling
    for rate in (1.0, 0.3):
        faster_head = {**dict.fromkeys(range(n), rate), last: 10 * rate}
        rates[f"full {rate:g}x, head {10 * rate:g}x"] = faster_head
    return _distinct(rates, blocks, head)


def _thirds(n_blocks: int) -> dict[str, range]:
    """Positions of the blocks in each third; any but one may be empty."""
    if n_blocks == 0:
        raise ValueError("recipes need at least one block, got none")
    first_cut, second_cut = round(n_blocks / 3), round(2 * n_blocks / 3)
    return {
        "first": range(first_cut),
        "middle": range(first_cut, second_cut),
        "last": range(second_cut, n_blocks),
    }


def _distinct(
    rates: Mapping[str, Mapping[int, float]], blocks: Sequence[str], head: HeadMode
) -> list[Recipe]:
    """Recipes of these multipliers by position, without those that train nothing or repeat one."""
    distinct: dict[object, Recipe] = {}
    for name, multipliers in rates.items():
        if multipliers:
            genome = encode(multipliers, len(blocks), head)
            distinct.setdefault(decode(genome, blocks, head), Recipe(name, genome))
    return list(distinct.values())
