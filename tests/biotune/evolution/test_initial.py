"""What a search tries first: the surgical scan, and an initial population that knows of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from biotune.evolution import Candidate, Evaluation, decode, recipes
from biotune.evolution.genome import HEAD_MODES, HeadMode
from biotune.evolution.initial import Founder, initial_population, single_blocks

BLOCKS = [f"block{i}" for i in range(10)]
# Test accuracy of each block alone on the digits.
ALONE = [0.106, 0.156, 0.652, 0.813, 0.941, 0.972, 0.975, 0.948, 0.910, 0.889]


def scanned(evaluations: list[Evaluation], blocks: list[str] = BLOCKS) -> list[Candidate]:
    return [
        Candidate(i, f.genome, decode(f.genome, blocks), f.origin, (), 0, 0, evaluation=evaluation)
        for i, (f, evaluation) in enumerate(
            zip(single_blocks(blocks, "evolved"), evaluations, strict=True)
        )
    ]


DIGITS = scanned([Evaluation(1 - accuracy) for accuracy in ALONE])


def founders(
    size: int,
    scan: list[Candidate],
    blocks: list[str] = BLOCKS,
    head: HeadMode = "evolved",
    with_recipes: bool = True,
) -> list[Founder]:
    rng = np.random.default_rng(0)
    return initial_population(blocks, head, size, rng, with_recipes=with_recipes, scan=scan)


def trained(founder: Founder, head: HeadMode = "evolved") -> dict[str, float]:
    return {b: m for b, m in decode(founder.genome, BLOCKS, head).items() if m is not None}


@pytest.mark.parametrize("head", HEAD_MODES)
def test_the_scan_trains_each_block_alone(head: HeadMode) -> None:
    scan = single_blocks(BLOCKS, head)
    assert [founder.origin for founder in scan] == [f"scan:{block}" for block in BLOCKS]
    beside = {BLOCKS[-1]: 1.0} if head == "trainable" else {}
    for block, founder in zip(BLOCKS, scan, strict=True):
        assert trained(founder, head) == {**beside, block: 5.0}


def test_the_best_two_three_and_four_blocks_follow_the_recipes() -> None:
    population = founders(10, DIGITS)
    assert [founder.origin for founder in population] == [
        *(f"recipe:{recipe.name}" for recipe in recipes(BLOCKS)[:5]),
        *["combination"] * 3,
        *["random"] * 2,
    ]
    assert [founder.parents for founder in population[5:8]] == [(6, 5), (6, 5, 7), (6, 5, 7, 4)]
    for founder in population[5:8]:
        assert trained(founder) == {BLOCKS[block]: 5.0 for block in sorted(founder.parents)}


def test_the_default_population_is_recipes_and_combinations() -> None:
    origins = [founder.origin.partition(":")[0] for founder in founders(6, DIGITS)]
    assert origins == ["recipe"] * 3 + ["combination"] * 3
    assert [founder.origin for founder in founders(2, DIGITS)] == ["recipe:full 1x", "combination"]


def test_blocks_whose_scan_failed_are_not_combined() -> None:
    failed = Evaluation(0.0, outcome="diverged")
    scan = [replace(c, evaluation=failed) if c.id in (5, 6) else c for c in DIGITS]
    assert [born.parents for born in founders(9, scan)[4:7]] == [(7, 4), (7, 4, 8), (7, 4, 8, 3)]
    all_but_two = [replace(c, evaluation=failed) if c.id > 1 else c for c in DIGITS]
    assert [founder.parents for founder in founders(6, all_but_two)][3:] == [(1, 0), (), ()]
    none = [replace(c, evaluation=failed) for c in DIGITS]
    assert founders(6, none) == founders(6, [])


def test_a_combination_that_is_a_recipe_gives_its_place_to_a_random_genome() -> None:
    blocks = BLOCKS[:6]  # the middle third is blocks 2 and 3
    scan = scanned([Evaluation(f) for f in (0.5, 0.4, 0.1, 0.2, 0.3, 0.6)], blocks)
    assert [founder.parents for founder in founders(6, scan, blocks)] == [
        *[()] * 3,
        (2, 3, 4),
        (2, 3, 4, 1),
        (),
    ]


def test_blocks_whose_scan_was_stopped_are_combined_after_the_finished() -> None:
    stopped = [replace(c.evaluation, outcome="stopped") for c in DIGITS if c.evaluation]
    scan = [
        replace(c, evaluation=evaluation) if c.id not in (4, 7) else c
        for c, evaluation in zip(DIGITS, stopped, strict=True)
    ]
    combined = [born.parents for born in founders(10, scan) if born.origin == "combination"]
    assert combined == [(7, 4), (7, 4, 6), (7, 4, 6, 5)]


def test_the_head_is_never_combined() -> None:
    scan = scanned([Evaluation(f) for f in (0.5, 0.4, 0.3, 0.2, 0.0)], BLOCKS[:5])
    parents = [founder.parents for founder in founders(9, scan, BLOCKS[:5])]
    assert [ids for ids in parents if ids] == [(3, 2), (3, 2, 1), (3, 2, 1, 0)]


@pytest.mark.parametrize("with_recipes", [True, False])
def test_a_scan_changes_none_of_the_draws(with_recipes: bool) -> None:
    without = founders(10, [], with_recipes=with_recipes)
    drawn = [founder for founder in without if founder.origin == "random"]
    beside = founders(10, DIGITS, with_recipes=with_recipes)
    assert [founder for founder in beside if founder.origin == "random"] == drawn[:-3]


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4])
def test_the_smallest_networks_combine_as_many_blocks_as_they_have(n_blocks: int) -> None:
    blocks = BLOCKS[:n_blocks]
    scan = scanned([Evaluation(0.1 * i) for i in range(n_blocks)], blocks)
    population = founders(8, scan, blocks, with_recipes=False)
    combined = [founder.parents for founder in population if founder.origin == "combination"]
    assert combined == [tuple(range(count)) for count in range(2, n_blocks)]
    assert len(population) == 8
