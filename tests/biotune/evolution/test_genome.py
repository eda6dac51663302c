"""Genomes: their range, immutability and JSON; which plan each decodes to."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune.evolution import Genome, decode

gene = st.floats(min_value=0, max_value=1)
genomes = st.builds(Genome, st.lists(gene, min_size=1, max_size=14), gene)


def names(genome: Genome) -> list[str]:
    return [f"block{i}" for i in range(genome.importances.size)]


@given(genomes)
def test_a_genome_survives_json_pickling_and_copying(genome: Genome) -> None:
    restored = [
        Genome.from_genes(json.loads(json.dumps(genome.to_list()))),
        Genome.from_genes(genome.genes),
        pickle.loads(pickle.dumps(genome)),  # noqa: S301
        copy.deepcopy(genome),
    ]
    for copied in restored:
        assert copied == genome
        assert hash(copied) == hash(genome)
        assert not copied.importances.flags.writeable


@given(genomes)
def test_a_block_is_frozen_at_or_below_the_threshold_and_else_learns_by_its_importance(
    genome: Genome,
) -> None:
    plan = decode(genome, names(genome))
    for importance, multiplier in zip(genome.importances, plan.values(), strict=True):
        if importance <= genome.threshold:
            assert multiplier is None
        else:
            # Three significant digits: the relative error is at most half of 1/100.
            assert multiplier == pytest.approx(10 ** (2 * importance - 1), rel=5.1e-3)
            assert 0.1 <= multiplier <= 10
            assert multiplier == float(f"{multiplier:.2e}")


@given(genomes)
def test_a_genome_is_viable_when_its_plan_trains_a_block(genome: Genome) -> None:
    assert genome.is_viable() == bool(decode(genome, names(genome)).trained_blocks)
    assert genome.is_viable("trainable")


@given(genomes)
def test_a_trainable_head_is_always_trained_at_the_rate_of_its_gene(genome: Genome) -> None:
    as_published, trainable = (decode(genome, names(genome), mode) for mode in _MODES)
    head = names(genome)[-1]
    assert trainable[head] == pytest.approx(10 ** (2 * genome.importances[-1] - 1), rel=5.1e-3)
    assert [(b, m) for b, m in trainable.items() if b != head] == [
        (b, m) for b, m in as_published.items() if b != head
    ]


_MODES = ("evolved", "trainable")


def test_decoding_matches_values_worked_out_by_hand() -> None:
    genome = Genome([0.0, 0.25, 0.5, 0.6, 0.75, 1.0], 0.25)
    plan = decode(genome, names(genome))
    # 10^0.2 = 1.5849 and 10^0.5 = 3.1623
    assert list(plan.values()) == [None, None, 1.0, 1.58, 3.16, 10.0]


def test_genomes_that_mean_the_same_are_the_same_plan() -> None:
    first, other = Genome([0.5, 0.1], 0.3), Genome([0.50001, 0.2], 0.31)
    assert first != other
    assert decode(first, ["a", "b"]) == decode(other, ["a", "b"])


def test_a_genome_cannot_be_changed_from_outside() -> None:
    values = np.array([0.1, 0.2])
    genome = Genome(values, 0.0)
    values[0] = 0.9
    genome.genes[0] = 0.9
    assert genome.importances[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        genome.importances[0] = 0.9
    with pytest.raises(AttributeError):
        genome.threshold = 0.5  # type: ignore[misc]


def test_a_genome_shows_its_genes() -> None:
    assert repr(Genome([0.25, 1], 0.5)) == "Genome([0.25, 1.0], 0.5)"
    assert Genome([0.25], 0.5) != [0.25, 0.5]


@pytest.mark.parametrize("bad", [-0.001, 1.001, math.nan, math.inf])
def test_genes_outside_0_to_1_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"importances must lie in \[0, 1\], got \[0.5, "):
        Genome([0.5, bad], 0.5)
    with pytest.raises(ValueError, match=rf"the threshold must lie in \[0, 1\], got {bad}"):
        Genome([0.5, 0.5], bad)


@pytest.mark.parametrize("importances", [[], [[0.5]], 0.5])
def test_importances_of_another_shape_are_refused(importances: object) -> None:
    with pytest.raises(ValueError, match=r"must be of shape \[blocks\], got shape \("):
        Genome(importances, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("genes", [[], [0.5], [[0.5, 0.5]]])
def test_genes_of_another_shape_are_refused(genes: object) -> None:
    with pytest.raises(ValueError, match=r"must be of shape \[blocks \+ 1\], got shape \("):
        Genome.from_genes(genes)  # type: ignore[arg-type]


def test_decoding_refuses_other_blocks_than_the_genome_has() -> None:
    with pytest.raises(ValueError, match="the genome has 2 importances, got 3 blocks"):
        decode(Genome([0.5, 0.5], 0.1), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"must differ, got \['a', 'a'\]"):
        decode(Genome([0.5, 0.5], 0.1), ["a", "a"])
    with pytest.raises(ValueError, match="head must be one of"):
        decode(Genome([0.5, 0.5], 0.1), ["a", "b"], "frozen")  # type: ignore[arg-type]


def test_random_genomes_come_from_the_given_generator_alone() -> None:
    first, again = (Genome.random(np.random.default_rng(3), 5) for _ in range(2))
    assert first == again
    assert first.importances.shape == (5,)
    assert Genome.random(np.random.default_rng(4), 5) != first
    with pytest.raises(ValueError, match="at least one block, got 0"):
        Genome.random(np.random.default_rng(0), 0)


@pytest.mark.parametrize("n_blocks", [1, 2, 10])
def test_random_viable_genomes_train_a_block_and_are_otherwise_random(n_blocks: int) -> None:
    rng = np.random.default_rng(0)
    drawn = [Genome.random_viable(rng, n_blocks) for _ in range(300)]
    assert all(genome.is_viable() for genome in drawn)
    # Without redrawing, one in n_blocks + 1 would train nothing.
    rng = np.random.default_rng(0)
    viable = sum(Genome.random(rng, n_blocks).is_viable() for _ in range(3000)) / 3000
    assert viable == pytest.approx(1 - 1 / (n_blocks + 1), abs=0.04)


def test_with_a_trainable_head_the_first_random_genome_is_viable() -> None:
    for seed in range(20):
        expected = Genome.random(np.random.default_rng(seed), 1)
        assert Genome.random_viable(np.random.default_rng(seed), 1, "trainable") == expected
