"""Pictures of a search: how fitness fell, what the plans were like, what accuracy cost.

Drawn from the rows of ``evaluations.csv``, as they are made or as they are read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
"""Of :func:`pipeline.reporting.rows.evaluation_row`; values may be their texts in the CSV file."""

_MULTIPLIER: Final = "lr_multiplier."


def search_figures(evaluations: Rows) -> dict[str, Figure]:
    """File name → figure, for every picture of a search.

    Args:
        evaluations: of all candidates in order of id, at least one.
    """
    return {
        "fitness_by_generation.png": fitness_by_generation(evaluations),
        "lr_multipliers.png": lr_multipliers(evaluations),
        "accuracy_against_parameters.png": accuracy_against_parameters(evaluations),
    }


def fitness_by_generation(evaluations: Rows) -> Figure:
    """Fitness of every finished candidate over generations, with the best so far as a line."""
    figure, axes = _figure()
    finished = _finished(evaluations)
    generations = [int(row["generation"]) for row in finished]
    fitness = [float(row["fitness"]) for row in finished]
    axes.scatter(generations, fitness, alpha=0.6, label="candidates")
    every = sorted(set(generations))
    best = [min(f for g, f in zip(generations, fitness, strict=True) if g <= e) for e in every]
    axes.step(every, best, where="post", color="tab:red", label="best so far")
    axes.set(xlabel="generation", ylabel="fitness (1 - validation score)", xticks=every)
    axes.legend()
    return figure


def lr_multipliers(evaluations: Rows) -> Figure:
    """Multiplier of each block over the evaluations; frozen blocks are blank."""
    from matplotlib.colors import LogNorm

    columns = [name for name in evaluations[0] if name.startswith(_MULTIPLIER)]
    grid = np.array([[float(row[name] or np.nan) for row in evaluations] for name in columns])
    blocks = [name.removeprefix(_MULTIPLIER) for name in columns]
    figure, axes = _figure()
    image = axes.imshow(grid, aspect="auto", norm=LogNorm(0.1, 10), cmap="viridis")
    axes.set(xlabel="evaluation", yticks=range(len(blocks)), yticklabels=blocks)
    figure.colorbar(image, label="lr multiplier (blank: frozen)")
    return figure


def accuracy_against_parameters(evaluations: Rows) -> Figure:
    """Validation accuracy against the number of trained parameters, coloured by generation."""
    figure, axes = _figure()
    finished = _finished(evaluations)
    points = axes.scatter(
        [int(row["trained_parameters"]) for row in finished],
        [1 - float(row["fitness"]) for row in finished],
        c=[int(row["generation"]) for row in finished],
        cmap="viridis",
    )
    axes.set(xlabel="trained parameters", ylabel="validation score", xscale="log")
    figure.colorbar(points, label="generation")
    return figure


def _finished(evaluations: Rows) -> Rows:
    return [row for row in evaluations if row["outcome"] == "finished"]


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()
