"""How runs scatter round what is expected of their plan, estimated from recordings' repetitions.

All in log odds of the validation score. A run's deviation is, epoch by epoch,

    scale(plan) · L · (seed + seed(plan) + division + division(plan) + run)

where L makes the epochs vary and hang together as the recorded ones do; and the five parts are
independent deviates: of the training seed and of the division of the images, each for all plans
alike and for the plan, and of the single run. Those for a plan are shared by similar plans, as far
as they are together in the forest that predicts their mean after its first splits.

A command prints the parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.landscapes.forest import Array, Forest, log_rates
from benchmarks.landscapes.surrogate import Recorded, Surrogate, log_odds
from benchmarks.reporting import markdown_table
from biotune.data.division import Division

SHARES = {
    "seed": 0.0,
    "seed × plan": 0.1,
    "division": 0.1,
    "division × plan": 0.3,
    "run": 0.65,
}
"""Variance of each part, where 1 is that of one plan's runs of several seeds or divisions. Of the
plans of all three landscapes that are trained to more than a score of .5: one landscape has too few
pairs of them. What the command prints, rounded, but for division × plan: of that there are too few
pairs at all (they say .1). But a forest predicts from other plans how much better a plan does on
the prepared validation images than on the test images, which is their division's doing: R² is .14
(digits), .63 (flowers) and .22 (clothing) of plans left out. So .3, at the run's cost."""

SPLITS = 3
"""Similar plans are together after so many splits of a tree. Of 2 to 8 and all, so many explain
best how divisions' deviations hang together; those of seeds hardly do."""

_SMALLEST = 0.02
"""Deviations of less are those of a plan that learns nothing, and always says the same."""


@dataclass(frozen=True)
class Noise:
    """Sizes of deviations on one landscape.

    Attributes:
        level: coefficients of the logarithm of a plan's scale: 1, its log odds, their absolute
            value.
        level_range: the smallest and greatest such logarithm that repetitions showed.
        scatter: standard deviation of that logarithm beside what these explain.
        epochs: L, [epochs, epochs], lower triangular; one of the late epochs has variance 1.
        brier: by how much the logarithm of the Brier score changes with log odds of the score.
    """

    level: Array
    level_range: tuple[float, float]
    scatter: float
    epochs: Array
    brier: float

    @classmethod
    def estimate(cls, recorded: Recorded) -> Noise:
        """From the plans of a recording that were trained with several seeds or divisions."""
        groups = list(_repetitions(recorded))
        odds = np.array([group.odds for group in groups])
        level, scatter = _scale(odds, np.array([group.size for group in groups]))
        logarithms = _design(odds) @ level
        scaled = [group.residuals / group.size for group in groups]
        covariance = np.mean([each.T @ each / len(each) for each in scaled], axis=0)
        scores = np.concatenate([group.residuals.ravel() for group in groups])
        briers = np.concatenate([group.briers.ravel() for group in groups])
        return cls(
            level=level,
            level_range=(float(logarithms.min()), float(logarithms.max())),
            scatter=scatter,
            epochs=np.linalg.cholesky(covariance + 1e-6 * np.eye(len(covariance))),
            brier=float(scores @ briers / (scores @ scores)),
        )

    def log_scale(self, odds: Array) -> Array:
        """Logarithm of the expected scale of plans with these log odds at their best, [plans]."""
        logarithms: Array = np.clip(_design(odds) @ self.level, *self.level_range)
        return logarithms


@dataclass
class Deviations:
    """Every deviation of one replicate: a pure function of plan, seed and division.

    Args:
        noise: sizes.
        forest: says which plans are alike.
        replicate: seeds all draws.
    """

    noise: Noise
    forest: Forest
    replicate: int
    _drawn: dict[tuple[int, int], Array] = field(default_factory=dict)

    def of_run(self, rates: Array, odds: Array, seed: int, division: Division) -> Array:
        """Deviation of the log odds of one run's score, [epochs].

        Args:
            rates: the plan's, [B].
            odds: what is expected of it, [epochs].
            seed, division: of the run.
        """
        together = self.forest.leaves(rates[None], SPLITS)[0]
        place = 0 if division.resampled is None else 1 + division.resampled
        digest = zlib.crc32(np.nan_to_num(rates, nan=9.0).tobytes())
        single = np.random.default_rng([self.replicate, 9, seed, place, digest])
        parts = {
            "seed": self._common(0, seed),
            "seed × plan": self._shared(1, seed, together),
            "division": self._common(2, place),
            "division × plan": self._shared(3, place, together),
            "run": single.standard_normal(odds.size),
        }
        deviation = sum(np.sqrt(SHARES[name]) * part for name, part in parts.items())
        scatter = self.noise.scatter * self._shared(4, 0, together)[0]
        scale = np.exp(self.noise.log_scale(odds[-1:])[0] + scatter)
        scaled: Array = scale * (self.noise.epochs @ deviation)
        return scaled

    def _common(self, part: int, number: int) -> Array:
        drawn: Array = self._draw(part, number, 1)[0]
        return drawn

    def _shared(self, part: int, number: int, together: NDArray[np.intp]) -> Array:
        """Each node of each tree has its own; a plan's is the sum of those that it is in."""
        of_nodes = self._draw(part, number, self.forest.feature.size)
        total: Array = of_nodes[together].sum(axis=0) / np.sqrt(together.size)
        return total

    def _draw(self, part: int, number: int, count: int) -> Array:
        if (part, number) not in self._drawn:
            rng = np.random.default_rng([self.replicate, part, number])
            self._drawn[part, number] = rng.standard_normal((count, len(self.noise.epochs)))
        return self._drawn[part, number]


@dataclass(frozen=True)
class Repetition:
    """A plan that was trained several times, with several seeds or on several divisions.

    Attributes:
        kind: ``seed`` or ``division``.
        rates: the plan's, [B].
        odds: its mean log odds at the end.
        residuals: of log odds from their mean of each epoch, [runs, epochs], with the variance of
            one run.
        briers: the same of the logarithm of the Brier score.
    """

    kind: str
    rates: Array
    odds: float
    residuals: Array
    briers: Array

    @property
    def late(self) -> Array:
        """Residuals of the second half of the epochs."""
        return self.residuals[:, self.residuals.shape[1] // 2 :]

    @cached_property
    def size(self) -> float:
        """Root of the mean square of the late residuals."""
        return float(np.sqrt((self.late**2).mean()))


def _repetitions(recorded: Recorded) -> Iterator[Repetition]:
    for plan, runs in recorded.runs.items():
        prepared = [r for r in runs if r.run.task.division.resampled is None]
        same_seed = [r for r in runs if r.run.task.seed == prepared[0].run.task.seed]
        for kind, group in (("seed", prepared), ("division", same_seed)):
            if len(group) < 2:
                continue
            odds = log_odds(np.array([run.curve.validation_score for run in group]))
            briers = np.log(np.array([run.curve.validation_brier for run in group]))
            repetition = Repetition(
                kind=kind,
                rates=log_rates(plan),
                odds=float(odds.mean(axis=0)[-1]),
                residuals=_residuals(odds),
                briers=_residuals(briers),
            )
            if repetition.size > _SMALLEST:
                yield repetition


def _residuals(values: Array) -> Array:
    residuals: Array = (values - values.mean(axis=0)) * np.sqrt(len(values) / (len(values) - 1))
    return residuals


def _design(odds: Array) -> Array:
    return np.stack([np.ones_like(odds), odds, np.abs(odds)], axis=1)


def _scale(odds: Array, sizes: Array) -> tuple[Array, float]:
    """Coefficients of the logarithm of a plan's scale, and how much it scatters beside these."""
    design, logarithms = _design(odds), np.log(sizes)
    # A little ridge: a score and its absolute value are all but one where all plans are good.
    inverse = np.linalg.inv(design.T @ design + 0.1 * np.diag([0, 1, 1]))
    level: Array = inverse @ design.T @ logarithms
    residual = logarithms - design @ level
    # Root mean squares of normal deviates of four degrees of freedom scatter by themselves.
    sampling = 1 / (2 * 4)
    excess = float(residual @ residual) / max(1, len(odds) - 3) - sampling
    level[0] += sampling  # the mean of squares is to be right, not the mean of logarithms
    return level, float(np.sqrt(max(0.0, excess)))


def estimate_shares(landscapes: Sequence[tuple[Recorded, Forest]]) -> dict[str, float]:
    """:data:`SHARES` by least squares, none below 0.

    Products of two plans' residuals of one seed or division, in units of their sizes, are explained
    by what the two share: what all do, what similar plans do, and, a plan with itself, the rest.
    """
    rows, products = [], []
    for recorded, forest in landscapes:
        groups = [group for group in _repetitions(recorded) if group.odds > 0]
        for kind in ("seed", "division"):
            of_kind = [group for group in groups if group.kind == kind]
            leaves = forest.leaves(np.stack([group.rates for group in of_kind]), SPLITS)
            for i, first in enumerate(of_kind):
                for j, second in enumerate(of_kind[: i + 1]):
                    shared = [1.0, float((leaves[i] == leaves[j]).mean())]
                    parts = [*shared, 0, 0] if kind == "seed" else [0, 0, *shared]
                    rows.append([*parts, float(i == j)])
                    same = min(len(first.late), len(second.late))
                    product = first.late[:same] * second.late[:same]
                    products.append(product.mean() / (first.size * second.size))
    shares = nnls(np.array(rows), np.array(products))[0]
    return dict(zip(SHARES, shares.tolist(), strict=True))


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
def main(files: tuple[Path, ...]) -> None:
    """Print how large the deviations of recorded runs are, and which parts they have.

    \b
    Example:
      python -m benchmarks.landscapes.noise benchmarks/landscapes/*.csv
    """
    recordings = [Recorded.read(file) for file in files]
    landscapes = [(recorded, Surrogate.fit(recorded).quality) for recorded in recordings]
    shares = estimate_shares(landscapes)
    click.echo(markdown_table(["part", "variance"], [(k, f"{v:.2f}") for k, v in shares.items()]))
    rows = []
    for file, (recorded, _) in zip(files, landscapes, strict=True):
        noise = Noise.estimate(recorded)
        covariance = noise.epochs @ noise.epochs.T
        sizes = np.sqrt(np.diag(covariance))
        scales = np.exp(noise.log_scale(log_odds(np.array([0.3, 0.7, 0.95]))))
        neighbours = covariance[-1, [0, 3, -2]] / sizes[-1] / sizes[[0, 3, -2]]
        cells = [*scales, noise.scatter, sizes[0], sizes[-1], *neighbours]
        rows.append([file.stem, *(f"{cell:.2f}" for cell in cells)])
    columns = ["landscape", *(f"scale at {score}" for score in (".30", ".70", ".95"))]
    columns += ["scatter of its logarithm", "first epoch", "last epoch"]
    columns += [
        f"last epoch's correlation with {e}" for e in ("the first", "the 4th", "the last but one")
    ]
    click.echo("\n" + markdown_table(columns, rows))


if __name__ == "__main__":
    main()
