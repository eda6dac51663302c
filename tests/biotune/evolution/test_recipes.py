"""Each recipe decodes to what its name claims, for small and large networks."""

from __future__ import annotations

import numpy as np
import pytest

from biotune.evolution import decode, recipes
from biotune.evolution.genome import HEAD_MODES, HeadMode

ORDER = [
    "full 1x",
    "full 3x",
    "middle third 5x",
    "linear probing",
    "first third 5x",
    "last third 5x",
    "rising 0.1x to 3x",
]
# Blocks in the first, the middle and the last third.
THIRDS = {3: (1, 1, 1), 6: (2, 2, 2), 10: (3, 4, 3), 14: (5, 4, 5)}


def blocks_of(n_blocks: int) -> list[str]:
    return [f"block{i}" for i in range(n_blocks)]


def multipliers(n_blocks: int, name: str, head: HeadMode = "evolved") -> list[float | None]:
    blocks = blocks_of(n_blocks)
    (genome,) = [recipe.genome for recipe in recipes(blocks, head) if recipe.name == name]
    return list(decode(genome, blocks, head).values())


@pytest.mark.parametrize("n_blocks", THIRDS)
@pytest.mark.parametrize("head", HEAD_MODES)
def test_the_recipes_come_in_the_order_of_their_promise(n_blocks: int, head: HeadMode) -> None:
    assert [recipe.name for recipe in recipes(blocks_of(n_blocks), head)] == ORDER


@pytest.mark.parametrize("n_blocks", THIRDS)
def test_each_recipe_decodes_to_what_it_claims(n_blocks: int) -> None:
    first, middle, last = THIRDS[n_blocks]
    assert multipliers(n_blocks, "full 1x") == [1.0] * n_blocks
    assert multipliers(n_blocks, "full 3x") == [3.0] * n_blocks
    expected = [None] * first + [5.0] * middle + [None] * last
    assert multipliers(n_blocks, "middle third 5x") == expected
    assert multipliers(n_blocks, "linear probing") == [None] * (n_blocks - 1) + [1.0]
    assert multipliers(n_blocks, "first third 5x") == [5.0] * first + [None] * (middle + last)
    assert multipliers(n_blocks, "last third 5x") == [None] * (first + middle) + [5.0] * last


@pytest.mark.parametrize("n_blocks", THIRDS)
def test_the_rising_rates_start_at_a_tenth_and_end_at_three_in_equal_ratios(n_blocks: int) -> None:
    rates = multipliers(n_blocks, "rising 0.1x to 3x")
    assert rates[0] == 0.1
    assert rates[-1] == 3.0
    ratios = np.diff(np.log10(np.array(rates, dtype=float)))
    assert ratios == pytest.approx([np.log10(30) / (n_blocks - 1)] * (n_blocks - 1), abs=5e-3)


@pytest.mark.parametrize("n_blocks", THIRDS)
def test_a_trainable_head_learns_at_1x_beside_a_third_trained_alone(n_blocks: int) -> None:
    first, middle, last = THIRDS[n_blocks]
    assert multipliers(n_blocks, "first third 5x", "trainable") == (
        [5.0] * first + [None] * (middle + last - 1) + [1.0]
    )
    for name in ("full 1x", "full 3x", "linear probing", "last third 5x", "rising 0.1x to 3x"):
        assert multipliers(n_blocks, name, "trainable") == multipliers(n_blocks, name)


@pytest.mark.parametrize("n_blocks", [1, 2])
@pytest.mark.parametrize("head", HEAD_MODES)
def test_the_smallest_networks_get_each_plan_once_and_none_that_trains_nothing(
    n_blocks: int, head: HeadMode
) -> None:
    blocks = blocks_of(n_blocks)
    plans = [decode(recipe.genome, blocks, head) for recipe in recipes(blocks, head)]
    assert len(set(plans)) == len(plans) > 1
    assert all(plan.trained_blocks for plan in plans)


def test_recipes_need_blocks() -> None:
    with pytest.raises(ValueError, match="at least one block, got none"):
        recipes([])
