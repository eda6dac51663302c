"""From a mating pool to children: the order of the operators, viability, and who leaves."""

from __future__ import annotations

import numpy as np
import pytest

from biotune.evolution.candidate import Candidate, Individual
from biotune.evolution.genome import Genome, decode
from biotune.evolution.reproduction import reproduce, without_beaten_parents
from biotune.plan import Evaluation


def individual(
    number: int,
    genes: list[float],
    fitness: float = 0.5,
    extinction: float = 0.5,
    parents: tuple[int, ...] = (),
    fold: int = 0,
) -> Individual:
    genome = Genome.from_genes(genes)
    plan = decode(genome, [f"block{i}" for i in range(len(genes) - 1)])
    candidate = Candidate(
        number, genome, plan, "random", parents, 0, fold, evaluation=Evaluation(fitness)
    )
    return Individual(candidate, np.zeros(len(genes)), extinction)


def test_a_child_is_crossed_mutated_adopted_and_clipped_in_this_order() -> None:
    pool = [individual(i, genes) for i, genes in enumerate(np.random.default_rng(5).random((4, 5)))]
    pool = [
        Individual(parent.candidate, np.full(5, 0.1 * rank), 0.3 * rank)
        for rank, parent in enumerate(pool)
    ]
    child = reproduce(pool, 4, "trainable", np.random.default_rng(11))  # viable at once

    rng = np.random.default_rng(11)  # the same draws, spelt out
    first, second = rng.choice(4, size=2, replace=False, p=[0.4, 0.3, 0.2, 0.1])
    prototype = pool[rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])].candidate.genome.genes
    p1, p2 = (pool[i].candidate.genome.genes for i in (first, second))
    u, r1, r2 = rng.random((3, 5))
    inherited = r1 * 0.1 * first + r2 * 0.1 * second
    crossed = u * p1 + (1 - u) * p2 + inherited
    e = (0.3 * first + 0.3 * second) / 2
    moved = crossed.copy()
    for gene, (chance, step) in enumerate(zip(rng.random(5), rng.uniform(-1, 1, 5), strict=True)):
        if chance < (e * 4 + 1) / 5:
            moved[gene] += e * step
    a, b, w = rng.random(3)
    moved += w * a * ((p1 + p2) / 2 - moved) + (1 - w) * b * (prototype - moved)
    assert child.genome.genes == pytest.approx(np.clip(moved, 0, 1))
    assert child.momentum == pytest.approx(rng.random(5) * inherited + moved - crossed)
    assert child.parents == (first, second)


def test_children_of_a_pool_of_two_are_fresh_random_genomes_at_rest() -> None:
    pool = [individual(0, [0.9, 0.9, 0.1]), individual(1, [0.8, 0.8, 0.2])]
    child = reproduce(pool, 2, "evolved", np.random.default_rng(0))
    assert child.parents == ()
    assert child.genome == Genome.random_viable(np.random.default_rng(0), 2)
    assert child.momentum.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(50))
def test_a_child_always_trains_a_block(seed: int) -> None:
    # Parents whose only trained block is barely above the threshold, so that many children fail.
    pool = [individual(i, [0.0, 0.1 * i + 0.11, 0.1 * i + 0.1]) for i in range(4)]
    child = reproduce(pool, 2, "evolved", np.random.default_rng(seed))
    assert child.genome.is_viable()


def test_where_no_child_can_train_a_block_a_random_genome_comes_instead() -> None:
    falling = np.array([-5.0, -5.0, 5.0])
    pool = [Individual(individual(i, [0.2, 0.2, 0.1]).candidate, falling, 0.0) for i in range(3)]
    child = reproduce(pool, 2, "evolved", np.random.default_rng(0))
    assert child.parents == ()
    assert child.genome.is_viable()


def test_only_parents_that_are_worse_than_their_child_leave_the_pool() -> None:
    genes = [0.9, 0.1]
    pool = [
        individual(0, genes, fitness=0.1),
        individual(1, genes, fitness=0.2),
        individual(2, genes, fitness=0.3),
        individual(3, genes, fitness=0.4),
    ]
    child = individual(9, genes, fitness=0.2, parents=(1, 3))
    left = without_beaten_parents(pool, child, same_fold=True)
    # 1 is as good as the child, 2 is worse but no parent.
    assert [parent.candidate.id for parent in left] == [0, 1, 2]
    assert len(pool) == 4


def test_parents_scored_on_another_fold_stay_unless_folds_are_mixed_as_published() -> None:
    genes = [0.9, 0.1]
    pool = [individual(0, genes, fitness=0.5, fold=0), individual(1, genes, fitness=0.5, fold=1)]
    child = individual(9, genes, fitness=0.2, parents=(0, 1), fold=1)
    strict = without_beaten_parents(pool, child, same_fold=True)
    assert [parent.candidate.id for parent in strict] == [0]
    assert without_beaten_parents(pool, child, same_fold=False) == []
