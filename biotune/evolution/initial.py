"""What a search tries first: known recipes, the surgical scan's best blocks, random genomes.

The surgical scan trains each block alone. After surgical fine-tuning (Lee et al. 2023, arXiv
2210.11466): which block is best to train alone depends on how the new data differ from the old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from biotune.evolution.genome import Genome, decode, encode
from biotune.evolution.recipes import recipes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from biotune.evolution.candidate import Candidate
    from biotune.evolution.genome import HeadMode

SCAN_RATE = 5.0
"""Multiplier of a block that is trained alone, and of the best of them together."""

COMBINED_BLOCKS = (2, 3, 4)
"""How many of the best single blocks are trained together."""


@dataclass(frozen=True)
class Founder:
    """A genome that was not bred.

    Attributes:
        origin, parents: as in :class:`~biotune.evolution.candidate.Candidate`.
        genome: trains at least one block.
    """

    origin: str
    genome: Genome
    parents: tuple[int, ...] = ()


def single_blocks(blocks: Sequence[str], head: HeadMode) -> list[Founder]:
    """The surgical scan: each block alone at :data:`SCAN_RATE`.

    Where the head is always trained, "alone" is beside the head at 1×.
    """
    n = len(blocks)
    return [
        Founder(f"scan:{block}", encode({position: SCAN_RATE}, n, head))
        for position, block in enumerate(blocks)
    ]


def initial_population(
    blocks: Sequence[str],
    head: HeadMode,
    size: int,
    rng: np.random.Generator,
    *,
    with_recipes: bool,
    scan: Sequence[Candidate],
) -> list[Founder]:
    """Recipes in up to half of the places, then the scan's best blocks together, then random.

    Args:
        blocks: in forward order, the head last.
        head: see :data:`~biotune.evolution.genome.HeadMode`.
        size: N.
        rng: drawn from for the random genomes alone.
        with_recipes: whether there are recipes.
        scan: the told candidates of :func:`single_blocks`, in its order; empty without one.
    """
    seeded = recipes(blocks, head)[: size // 2] if with_recipes else []
    founders = [Founder(f"recipe:{recipe.name}", recipe.genome) for recipe in seeded]
    for combination in _combinations(scan, len(blocks), head)[: size - len(founders)]:
        plans = [decode(founder.genome, blocks, head) for founder in founders]
        if decode(combination.genome, blocks, head) not in plans:
            founders.append(combination)
    while len(founders) < size:
        founders.append(Founder("random", Genome.random_viable(rng, len(blocks), head)))
    return founders


def _combinations(scan: Sequence[Candidate], n_blocks: int, head: HeadMode) -> list[Founder]:
    """The best two, three and four blocks together at :data:`SCAN_RATE`, as far as there are.

    Of the backbone alone: the head, new and therefore good by itself, says nothing of what is to be
    adapted, and took the place of a block that mattered (digits at 32 px).
    """
    order = sorted(
        (position for position, candidate in enumerate(scan[:-1]) if not candidate.failed),
        key=lambda position: scan[position].rank_key,
    )
    return [
        Founder(
            "combination",
            encode(dict.fromkeys(order[:count], SCAN_RATE), n_blocks, head),
            tuple(scan[position].id for position in order[:count]),
        )
        for count in COMBINED_BLOCKS
        if count <= len(order)
    ]
