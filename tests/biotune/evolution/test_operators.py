"""Each operator's formula against numbers worked out by hand, and its bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune.evolution.genome import Genome
from biotune.evolution.operators import adopt, crossover, exploit, mutate, update_momentum

gene = st.floats(min_value=0, max_value=1)
genomes = st.builds(Genome, st.lists(gene, min_size=1, max_size=10), gene)
seeds = st.integers(min_value=0, max_value=2**32)
modes = st.sampled_from(["evolved", "trainable"])


def test_crossover_blends_each_gene_and_adds_the_inherited_momentum(
    scripted: Callable[..., np.random.Generator],
) -> None:
    u, r1, r2 = [0.25, 0.5], [0.5, 0.1], [0.2, 0.4]
    child, momentum = crossover(
        np.array([0.8, 0.0]),
        np.array([0.4, 1.0]),
        np.array([0.2, -0.1]),
        np.array([-0.5, 0.5]),
        scripted(*u, *r1, *r2),
    )
    # m = .5·.2 + .2·(−.5) = 0  and  .1·(−.1) + .4·.5 = .19
    assert momentum == pytest.approx([0.0, 0.19])
    # .25·.8 + .75·.4 + 0 = .5  and  .5·0 + .5·1 + .19 = .69
    assert child == pytest.approx([0.5, 0.69])


def test_crossover_does_not_clip(scripted: Callable[..., np.random.Generator]) -> None:
    parent = np.array([1.0])
    child, _ = crossover(parent, parent, parent, parent, scripted(0.5, 0.5, 0.5))
    assert child == pytest.approx([2.0])


def test_mutation_moves_the_drawn_genes_by_at_most_the_extinction_factor(
    scripted: Callable[..., np.random.Generator],
) -> None:
    # ē = .5, n = 4: each gene with probability (.5·3 + 1)/4 = .625, by .5·(2x − 1).
    draws = scripted(0.624, 0.626, 0.0, 0.999, 1.0, 1.0, 0.25, 0.5)
    mutated = mutate(np.array([0.1, 0.2, 0.3, 0.4]), 0.5, draws)
    assert mutated == pytest.approx([0.1 + 0.5, 0.2, 0.3 - 0.25, 0.4])


@pytest.mark.parametrize(("extinction", "expected"), [(1.0, 1.0), (0.5, 0.625), (0.1, 0.325)])
def test_genes_mutate_as_often_as_published(extinction: float, expected: float) -> None:
    rng = np.random.default_rng(0)
    changed = [mutate(np.zeros(4), extinction, rng) != 0 for _ in range(4000)]
    assert np.mean(changed) == pytest.approx(expected, abs=0.02)


def test_children_of_the_best_do_not_mutate() -> None:
    child = np.array([0.1, 0.2])
    assert mutate(child, 0.0, np.random.default_rng(0)).tolist() == child.tolist()


def test_adoption_moves_the_child_towards_its_parents_and_the_prototype(
    scripted: Callable[..., np.random.Generator],
) -> None:
    a, b, w = 0.5, 0.8, 0.25
    adopted = adopt(
        np.array([0.2, 1.0]),
        np.array([0.4, 0.0]),
        np.array([0.8, 0.2]),
        np.array([0.7, 0.5]),
        scripted(a, b, w),
    )
    # .2 + .25·.5·(.6 − .2) + .75·.8·(.7 − .2) = .55
    # 1 + .25·.5·(.1 − 1) + .75·.8·(.5 − 1) = .5875
    assert adopted == pytest.approx([0.55, 0.5875])


@given(seeds, st.lists(gene, min_size=1, max_size=8))
def test_adoption_ends_between_the_child_the_parents_mean_and_the_prototype(
    seed: int, genes: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    child = np.array(genes)
    first, second, prototype = rng.random((3, child.size))
    adopted = adopt(child, first, second, prototype, rng)
    corners = np.stack([child, (first + second) / 2, prototype])
    assert np.all(adopted >= corners.min(axis=0) - 1e-12)
    assert np.all(adopted <= corners.max(axis=0) + 1e-12)


def test_momentum_keeps_a_share_of_the_old_and_adds_the_movement(
    scripted: Callable[..., np.random.Generator],
) -> None:
    updated = update_momentum(np.array([0.4, -0.2]), np.array([0.1, 0.3]), scripted(0.5, 1.0))
    assert updated == pytest.approx([0.3, 0.1])


def test_no_operator_changes_its_arguments() -> None:
    rng = np.random.default_rng(0)
    vectors = list(rng.random((4, 5)))
    before = [vector.copy() for vector in vectors]
    crossover(*vectors, rng)
    mutate(vectors[0], 0.7, rng)
    adopt(*vectors, rng)
    update_momentum(vectors[0], vectors[1], rng)
    assert np.array_equal(vectors, before)


def test_exploitation_steps_both_ways_along_one_trained_gene(
    scripted: Callable[..., np.random.Generator],
) -> None:
    # Trained are genes 1 and 3; .6 draws the second of them; δ = .25·(2·.9 − 1) = .2
    up, down = exploit(Genome([0.1, 0.7, 0.2, 0.6], 0.4), "evolved", scripted(0.6, 0.9))
    assert up.to_list() == pytest.approx([0.1, 0.7, 0.2, 0.8, 0.4])
    assert down.to_list() == pytest.approx([0.1, 0.7, 0.2, 0.4, 0.4])


def test_exploitation_is_clipped_before_it_is_scored(
    scripted: Callable[..., np.random.Generator],
) -> None:
    up, down = exploit(Genome([0.95, 0.9], 0.0), "evolved", scripted(0.0, 1.0))
    assert up.to_list() == [1.0, 0.9, 0.0]
    assert down.to_list() == pytest.approx([0.7, 0.9, 0.0])


@given(genomes, seeds, modes)
def test_exploitation_changes_one_trained_gene_by_at_most_a_quarter_and_stays_viable(
    genome: Genome, seed: int, mode: str
) -> None:
    if not genome.is_viable(mode):
        with pytest.raises(ValueError, match="exploitation needs a genome that trains a block"):
            exploit(genome, mode, np.random.default_rng(seed))
        return
    steps = exploit(genome, mode, np.random.default_rng(seed))
    changed = {int(g) for step in steps for g in np.flatnonzero(step.genes != genome.genes)}
    assert len(changed) <= 1
    for gene_index in changed:
        assert genome.trained(mode)[gene_index]
    for step in steps:
        assert step.is_viable(mode)
        assert np.abs(step.genes - genome.genes).max() <= 0.25
        assert step.threshold == genome.threshold


def test_exploitation_of_the_only_trained_block_stops_above_the_threshold(
    scripted: Callable[..., np.random.Generator],
) -> None:
    _, down = exploit(Genome([0.1, 0.45], 0.4), "evolved", scripted(0.0, 1.0))
    assert down.importances[1] == np.nextafter(0.4, 1)
    # The same step may freeze one block of two, and leave a trainable head at any rate.
    _, down = exploit(Genome([0.41, 0.45], 0.4), "evolved", scripted(0.5, 1.0))
    assert down.importances[1] == pytest.approx(0.2)
    _, down = exploit(Genome([0.1, 0.45], 0.4), "trainable", scripted(0.0, 1.0))
    assert down.importances[1] == pytest.approx(0.2)
