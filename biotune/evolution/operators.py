"""The variation operators: pure functions of gene vectors and of the Generator passed in.

They come from the memetic inverse-kinematics solver of Starke et al., as Davila et al. (IEEE
Access 13, 2025, doi 10.1109/ACCESS.2025.3587524) use them. Gene vectors have shape [n], n = B+2:
one importance per block, then the threshold. Only :func:`exploit` clips; a child is clipped once,
after the last operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from biotune.evolution.genome import Genome

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from biotune.evolution.genome import HeadMode

    Genes = NDArray[np.float64]

EXPLOITATION_RADIUS = 0.25
"""The largest step that exploitation takes along one gene (Davila et al.)."""


def crossover(
    first: Genes,
    second: Genes,
    first_momentum: Genes,
    second_momentum: Genes,
    rng: np.random.Generator,
) -> tuple[Genes, Genes]:
    """Blend two parents and move the child by the momentum it inherits.

    m = r₁ ⊙ m₁ + r₂ ⊙ m₂ and child = u ⊙ p₁ + (1 − u) ⊙ p₂ + m, with u, r₁, r₂ ~ U(0,1)ⁿ.

    Returns:
        the child, not clipped, and its momentum m; both of shape [n].
    """
    blend, first_share, second_share = rng.random((3, first.size))
    momentum = first_share * first_momentum + second_share * second_momentum
    return blend * first + (1 - blend) * second + momentum, momentum


def mutate(child: Genes, extinction: float, rng: np.random.Generator) -> Genes:
    """Disturb some genes, the more and the further the worse the parents were.

    Each gene mutates with probability (ē(n−1)+1)/n, by ē·U(−1,1).

    Args:
        child: shape [n].
        extinction: ē, the parents' mean extinction factor, in [0, 1].

    Returns:
        the mutated child, shape [n], not clipped.
    """
    probability = (extinction * (child.size - 1) + 1) / child.size
    mutates = rng.random(child.size) < probability
    steps = extinction * rng.uniform(-1, 1, child.size)
    return np.where(mutates, child + steps, child)


def adopt(
    child: Genes, first: Genes, second: Genes, prototype: Genes, rng: np.random.Generator
) -> Genes:
    """Draw the child towards its parents' mean and towards a prototype.

    child + w·a·(mean(p₁,p₂) − child) + (1−w)·b·(prototype − child), with a, b, w ~ U(0,1) drawn
    once for the whole child. All vectors have shape [n]; the result is not clipped.
    """
    to_parents, to_prototype, weight = rng.random(3)
    parents_pull = weight * to_parents * ((first + second) / 2 - child)
    prototype_pull = (1 - weight) * to_prototype * (prototype - child)
    adopted: Genes = child + parents_pull + prototype_pull
    return adopted


def update_momentum(momentum: Genes, movement: Genes, rng: np.random.Generator) -> Genes:
    """The momentum that a child passes on: r ⊙ m + movement, with r ~ U(0,1)ⁿ.

    Args:
        momentum: m, what the child inherited, shape [n].
        movement: the child after mutation and adoption minus the child after crossover, shape [n].
    """
    return rng.random(momentum.size) * momentum + movement


def exploit(genome: Genome, head: HeadMode, rng: np.random.Generator) -> tuple[Genome, Genome]:
    """One step up and one step down along the importance of one trained block.

    The step is δ = 0.25·U(−1,1). Both genomes are clipped before they are scored, so that what
    is kept is what was scored. A step that would freeze the only trained block ends just above
    the threshold instead: a genome that trains nothing is not worth an evaluation.

    Args:
        genome: a genome that trains at least one block.

    Returns:
        the genomes with gene + δ and gene − δ; both train at least one block.

    Raises:
        ValueError: if the genome trains nothing, or for an unknown ``head``.
    """
    trained = np.flatnonzero(genome.trained(head))
    if not trained.size:
        raise ValueError(f"exploitation needs a genome that trains a block, got {genome}")
    gene = int(rng.choice(trained))
    step = EXPLOITATION_RADIUS * rng.uniform(-1, 1)
    is_last_block = gene == genome.importances.size - 1
    may_freeze = trained.size > 1 or (head == "trainable" and is_last_block)
    lowest = 0.0 if may_freeze else float(np.nextafter(genome.threshold, 1))
    up, down = genome.genes, genome.genes
    up[gene] = np.clip(up[gene] + step, lowest, 1)
    down[gene] = np.clip(down[gene] - step, lowest, 1)
    return Genome.from_genes(up), Genome.from_genes(down)
