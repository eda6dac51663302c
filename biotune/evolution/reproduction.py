"""From a mating pool to the genes of a child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from biotune.evolution.genome import Genome
from biotune.evolution.operators import adopt, crossover, mutate, update_momentum
from biotune.evolution.selection import draw_parents, draw_prototype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from biotune.evolution.candidate import Individual
    from biotune.evolution.genome import HeadMode

SMALLEST_MATING_POOL = 3
"""With fewer in the pool, children are fresh random genomes (Davila et al.)."""

# Enough that a child of viable parents is nearly always viable; a bound, because parents whose
# only trained block lies just above their threshold might never have one.
_BREEDING_ATTEMPTS = 10


@dataclass(frozen=True)
class Child:
    """A genome that is proposed for a place in the next generation.

    Attributes:
        origin: ``offspring``; ``newcomer``, drawn at random because breeding was impossible; or
            ``recipe:NAME``.
        genome: trains at least one block.
        momentum: shape [B+2].
        parents: ids of the two parents of an offspring; none for the others.
    """

    origin: str
    genome: Genome
    momentum: NDArray[np.float64]
    parents: tuple[int, ...] = ()


def reproduce(
    pool: Sequence[Individual], n_blocks: int, head: HeadMode, rng: np.random.Generator
) -> Child:
    """One child of a mating pool.

    A child that trains nothing is not worth an evaluation. It is bred anew, other parents
    included, and if that keeps failing, a random genome takes its place, as it does when the
    pool is too small.

    Args:
        pool: sorted best first.
        n_blocks: B+1, the number of blocks.
    """
    if len(pool) >= SMALLEST_MATING_POOL:
        for _ in range(_BREEDING_ATTEMPTS):
            child = _breed(pool, rng)
            if child.genome.is_viable(head):
                return child
    return Child("newcomer", Genome.random_viable(rng, n_blocks, head), np.zeros(n_blocks + 1))


def _breed(pool: Sequence[Individual], rng: np.random.Generator) -> Child:
    """Crossover, mutation, adoption, momentum and clipping, in this order."""
    first, second = (pool[rank] for rank in draw_parents(len(pool), rng))
    prototype = pool[draw_prototype(len(pool), rng)].candidate.genome.genes
    first_genes, second_genes = first.candidate.genome.genes, second.candidate.genome.genes
    crossed, inherited = crossover(first_genes, second_genes, first.momentum, second.momentum, rng)
    mutated = mutate(crossed, (first.extinction + second.extinction) / 2, rng)
    adopted = adopt(mutated, first_genes, second_genes, prototype, rng)
    momentum = update_momentum(inherited, adopted - crossed, rng)
    genome = Genome.from_genes(np.clip(adopted, 0, 1))
    return Child("offspring", genome, momentum, (first.candidate.id, second.candidate.id))


def without_beaten_parents(
    pool: Sequence[Individual], child: Individual, *, same_fold: bool
) -> list[Individual]:
    """The mating pool less the parents that are worse than their child.

    Args:
        pool: the mating pool; stays as it is.
        child: an individual that was told.
        same_fold: compare with parents that were scored on the child's fold only.
    """
    born = child.candidate
    return [
        individual
        for individual in pool
        if individual.candidate.id not in born.parents
        or not born.beats(individual.candidate)
        or (same_fold and individual.candidate.fold != born.fold)
    ]
