"""Each recipe decodes to what its name claims, for small and large networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from biotune.evolution import Recipe, decode, recipe_grid, recipes
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


def grid(n_blocks: int, head: HeadMode = "evolved") -> dict[str, list[float | None]]:
    """Name → multipliers, of the whole grid."""
    blocks = blocks_of(n_blocks)
    return {
        r.name: list(decode(r.genome, blocks, head).values()) for r in recipe_grid(blocks, head)
    }


@pytest.mark.parametrize("n_blocks", THIRDS)
def test_the_grid_tunes_the_rate_of_every_recipe(n_blocks: int) -> None:
    first, middle, last = THIRDS[n_blocks]
    tuned = grid(n_blocks)
    expected: dict[str, list[float | None]] = {}
    for rate in (0.3, 1.0, 3.0, 10.0):
        expected[f"full {rate:g}x"] = [rate] * n_blocks
        expected[f"linear probing {rate:g}x"] = [None] * (n_blocks - 1) + [rate]
    for rate in (2.0, 5.0):
        expected[f"first third {rate:g}x"] = [rate] * first + [None] * (middle + last)
        expected[f"middle third {rate:g}x"] = [None] * first + [rate] * middle + [None] * last
        expected[f"last third {rate:g}x"] = [None] * (first + middle) + [rate] * last
    expected["full 0.3x, head 3x"] = [0.3] * (n_blocks - 1) + [3.0]
    expected["full 1x, head 10x"] = [1.0] * (n_blocks - 1) + [10.0]
    decayed = {name for name in tuned if name.startswith("layer-wise decay")}
    assert len(decayed) == 6
    assert {name: tuned[name] for name in tuned.keys() - decayed} == expected
    assert len({tuple(rates) for rates in tuned.values()}) == len(tuned)


def test_rates_that_decay_fall_from_the_head_by_the_same_ratio_to_at_least_a_tenth() -> None:
    tuned = grid(6)
    assert tuned["layer-wise decay 0.8 from 1x"] == [0.328, 0.41, 0.512, 0.64, 0.8, 1.0]
    assert tuned["layer-wise decay 0.65 from 3x"] == [0.348, 0.536, 0.824, 1.27, 1.95, 3.0]
    assert tuned["layer-wise decay 0.65 from 10x"][-2:] == [6.5, 10.0]
    assert grid(10)["layer-wise decay 0.65 from 1x"][:5] == [0.1, 0.1, 0.1, 0.1, 0.116]


def test_a_trainable_head_learns_at_1x_beside_a_third_of_the_grid() -> None:
    assert grid(6, "trainable")["middle third 2x"] == [None, None, 2.0, 2.0, None, 1.0]
    assert grid(6, "trainable")["last third 2x"] == grid(6)["last third 2x"]


@pytest.mark.parametrize("known", [recipes, recipe_grid])
@pytest.mark.parametrize("n_blocks", [1, 2])
@pytest.mark.parametrize("head", HEAD_MODES)
def test_the_smallest_networks_get_each_plan_once_and_none_that_trains_nothing(
    known: Callable[[Sequence[str], HeadMode], list[Recipe]], n_blocks: int, head: HeadMode
) -> None:
    blocks = blocks_of(n_blocks)
    plans = [decode(recipe.genome, blocks, head) for recipe in known(blocks, head)]
    assert len(set(plans)) == len(plans) > 1
    assert all(plan.trained_blocks for plan in plans)


@pytest.mark.parametrize("known", [recipes, recipe_grid])
def test_recipes_need_blocks(known: Callable[[Sequence[str]], list[Recipe]]) -> None:
    with pytest.raises(ValueError, match="at least one block, got none"):
        known([])
