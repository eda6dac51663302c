"""Pictures of a search: how fitness fell, what the plans were like, what accuracy cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evolve import EvaluatedCandidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def search_figures(evaluated: Sequence[EvaluatedCandidate]) -> dict[str, Figure]:
    """File name → figure, for every picture of a search.

    Args:
        evaluated: all candidates in order of id, at least one.
    """
    return {
        "fitness_by_generation.png": fitness_by_generation(evaluated),
        "lr_multipliers.png": lr_multipliers(evaluated),
        "accuracy_against_parameters.png": accuracy_against_parameters(evaluated),
    }


def fitness_by_generation(evaluated: Sequence[EvaluatedCandidate]) -> Figure:
    """Fitness of every finished candidate over generations, with the best so far as a line."""
    figure, axes = _figure()
    finished = _finished(evaluated)
    generations = [one.candidate.generation for one in finished]
    fitness = [one.candidate.fitness for one in finished]
    axes.scatter(generations, fitness, alpha=0.6, label="candidates")
    every = sorted(set(generations))
    best = [min(f for g, f in zip(generations, fitness, strict=True) if g <= e) for e in every]
    axes.step(every, best, where="post", color="tab:red", label="best so far")
    axes.set(xlabel="generation", ylabel="fitness (1 - validation score)", xticks=every)
    axes.legend()
    return figure


def lr_multipliers(evaluated: Sequence[EvaluatedCandidate]) -> Figure:
    """Multiplier of each block over the evaluations; frozen blocks are blank."""
    from matplotlib.colors import LogNorm

    blocks = list(evaluated[0].candidate.plan)
    grid = np.array(
        [[one.candidate.plan[block] or np.nan for one in evaluated] for block in blocks]
    )
    figure, axes = _figure()
    image = axes.imshow(grid, aspect="auto", norm=LogNorm(0.1, 10), cmap="viridis")
    axes.set(xlabel="evaluation", yticks=range(len(blocks)), yticklabels=blocks)
    figure.colorbar(image, label="lr multiplier (blank: frozen)")
    return figure


def accuracy_against_parameters(evaluated: Sequence[EvaluatedCandidate]) -> Figure:
    """Validation accuracy against the number of trained parameters, coloured by generation."""
    figure, axes = _figure()
    finished = _finished(evaluated)
    points = axes.scatter(
        [run.runs[0].curve.trained_parameters for run in finished],
        [1 - one.candidate.fitness for one in finished],
        c=[one.candidate.generation for one in finished],
        cmap="viridis",
    )
    axes.set(xlabel="trained parameters", ylabel="validation score", xscale="log")
    figure.colorbar(points, label="generation")
    return figure


def _finished(evaluated: Sequence[EvaluatedCandidate]) -> list[EvaluatedCandidate]:
    return [
        one
        for one in evaluated
        if one.candidate.evaluation and one.candidate.evaluation.outcome == "finished"
    ]


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()
