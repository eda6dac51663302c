"""Children proposed for a place in the next generation, and what could be bred after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from biotune.evolution.genome import decode
from biotune.evolution.operators import exploit
from biotune.evolution.recipes import MOST_RECIPES, recipe_grid
from biotune.evolution.reproduction import Child, reproduce

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from biotune.evolution.candidate import Candidate, Individual
    from biotune.evolution.genome import HeadMode
    from biotune.evolution.screening import Screen
    from biotune.plan import FineTunePlan


def propose_child(
    pool: Sequence[Individual],
    blocks: Sequence[str],
    head: HeadMode,
    rng: np.random.Generator,
    screen: Screen,
    recipes: Sequence[Child] = (),
) -> Child:
    """The child that takes a place.

    Args:
        pool: mates; best first.
        blocks: of the network.
        head: see :data:`~biotune.evolution.genome.HeadMode`.
        rng: of the search.
        screen: says how many children are bred for the place, and chooses.
        recipes: compete with them.
    """
    bred = [reproduce(pool, len(blocks), head, rng) for _ in range(screen.proposals)]
    children = [*bred, *recipes]
    plans = [decode(child.genome, blocks, head) for child in children]
    return children[screen.choose(plans, 1)[0]]


def recipe_proposals(
    candidates: Iterable[Candidate], blocks: Sequence[str], head: HeadMode
) -> list[Child]:
    """Known recipes as children, at rest; none once a search has tried :data:`MOST_RECIPES`.

    Args:
        candidates: all that the search has asked for.
        blocks: of the network.
        head: see :data:`~biotune.evolution.genome.HeadMode`.
    """
    tried = sum(candidate.origin.startswith("recipe:") for candidate in candidates)
    if tried >= MOST_RECIPES:
        return []
    return [
        Child(f"recipe:{recipe.name}", recipe.genome, np.zeros(len(blocks) + 1))
        for recipe in recipe_grid(blocks, head)
    ]


def outlook(
    ranking: Sequence[Individual],
    elites: int,
    blocks: Sequence[str],
    head: HeadMode,
    rng: np.random.Generator,
    proposals: int,
) -> Iterator[FineTunePlan]:
    """Plans of which the next generation might be made.

    Args:
        ranking: of the generation before it, best first.
        elites: E.
        blocks: of the network.
        head: see :data:`~biotune.evolution.genome.HeadMode`.
        rng: not the search's: what is drawn here must not change what the search draws.
        proposals: that are bred for each place.
    """
    for _ in range(proposals):
        for elite in ranking[:elites]:
            for step in exploit(elite.candidate.genome, head, rng):
                yield decode(step, blocks, head)
        for _ in range(len(ranking) - elites):
            yield decode(reproduce(ranking, len(blocks), head, rng).genome, blocks, head)
