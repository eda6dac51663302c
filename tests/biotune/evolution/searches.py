"""Searches on a function of the genes, for the tests of ask and tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from biotune.evolution import BioTune, Candidate, Evaluation

BLOCKS = ["stem", "layer1", "layer2", "layer3", "head"]
MODES = ["batch", "sequential"]

Fitness = Callable[[Candidate], float | Evaluation]


def distance(candidate: Candidate) -> float:
    """How far the genome is from one that trains the middle at high rates."""
    ideal = np.array([0.0, 0.3, 0.9, 0.8, 0.1, 0.4])
    return float(np.mean((candidate.genome.genes - ideal) ** 2))


def run(search: BioTune, fitness: Fitness, order: np.random.Generator | None = None) -> BioTune:
    """The search, told all it asks for; each batch in an order that this generator draws."""
    while not search.done:
        asked = search.ask()
        if order is not None:
            order.shuffle(asked)
        for candidate in asked:
            search.tell(candidate, fitness(candidate))
    return search


def small(**settings: object) -> BioTune:
    """A search of three generations of five, with these settings."""
    return BioTune(BLOCKS, **{"population": 5, "generations": 3, "elites": 2, **settings})
