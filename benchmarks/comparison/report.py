"""What a comparison shows: every row, paired differences, costs, and where winners came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.comparison.arms import ARMS
from benchmarks.comparison.rows import Row
from benchmarks.held_out import HeldOutScores
from benchmarks.landscapes.recording import plan_text
from benchmarks.reporting import markdown_table

FIRST = "screened"
"""The arm that all others are paired with."""


@dataclass(frozen=True)
class Difference:
    """Of paired values.

    Attributes:
        pairs: how many.
        mean: of the differences.
        half: half of the 95 % t-interval of the mean; None of a single pair.
    """

    pairs: int
    mean: float
    half: float | None

    def __str__(self) -> str:
        if self.half is None:
            return f"{100 * self.mean:+.2f}"
        low, high = 100 * (self.mean - self.half), 100 * (self.mean + self.half)
        return f"{100 * self.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def difference(rows: Sequence[Row], arm: str, score: str) -> Difference | None:
    """``screened`` less another arm on the test split, by set and repetition; None without a pair.

    Args:
        rows: of one set, or of several, whose pairs then count alike.
        arm: the other.
        score: a field of :class:`~benchmarks.held_out.HeldOutScores`.
    """
    of = {(row.images, row.repetition, row.arm): float(getattr(row.test, score)) for row in rows}
    pairs = [key for key in of if key[2] == FIRST and (*key[:2], arm) in of]
    if not pairs:
        return None
    values = np.array([of[key] - of[*key[:2], arm] for key in pairs])
    if len(values) == 1:
        return Difference(1, float(values[0]), None)
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Difference(len(values), float(values.mean()), half)


def report(rows: Sequence[Row]) -> str:
    """Markdown tables of all that was compared."""
    order = list(ARMS)
    ordered = sorted(rows, key=lambda row: (row.images, row.repetition, order.index(row.arm)))
    groups = {name: [row for row in ordered if row.images == name] for name in _sets(ordered)}
    if len(groups) > 1:
        groups["all"] = ordered
    parts = [
        "Every row. Scores in percent; CPU seconds of one thread.",
        _all_rows(ordered),
        f"`{FIRST}` less each arm on the test split, in points, paired by set and repetition; mean "
        "(95 % t-interval over the pairs).",
        _differences(groups),
        "Means of an arm.",
        _arms(groups),
    ]
    codes = sorted({row.made_by["code"] for row in rows})
    if len(codes) > 1:
        parts.append(f"Attention: these rows were made by different code ({', '.join(codes)}).")
    return "\n\n".join(parts) + "\n"


def _sets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.images for row in rows))


def _all_rows(rows: Sequence[Row]) -> str:
    columns = [
        *("set", "repetition", "arm", "winner", "origin", "generation", "confirmed"),
        *("recipe confirmed", "test balanced accuracy", "test accuracy"),
        *("evolution, s", "confirmation, s", "candidates", "bred elites"),
    ]
    cells = [
        [
            *(row.images, str(row.repetition), row.arm, plan_text(row.found.plan)),
            *(row.found.origin, str(row.found.generation)),
            *(f"{100 * v:.1f}" for v in (row.found.confirmed, row.found.recipe_confirmed)),
            *(f"{100 * value:.1f}" for value in row.test),
            *(f"{row.found.evolution_seconds:.0f}", f"{row.found.confirmation_seconds:.0f}"),
            *(str(row.found.candidates), str(row.found.bred_elites)),
        ]
        for row in rows
    ]
    return markdown_table(columns, cells)


def _differences(groups: dict[str, list[Row]]) -> str:
    scores = HeldOutScores._fields
    cells = []
    for name, rows in groups.items():
        for arm in (arm for arm in ARMS if arm != FIRST):
            each = [difference(rows, arm, score) for score in scores]
            pairs = [str(d.pairs) for d in each[:1] if d is not None]
            if pairs:
                cells.append([name, f"less {arm}", *pairs, *map(str, each)])
    return markdown_table(["set", "", "pairs", *(s.replace("_", " ") for s in scores)], cells)


def _arms(groups: dict[str, list[Row]]) -> str:
    cells = []
    for name, rows in groups.items():
        for arm in ARMS:
            found = [row.found for row in rows if row.arm == arm]
            if not found:
                continue
            bred = sum(f.generation > 0 for f in found)
            means = [
                np.mean([f.evolution_seconds for f in found]),
                np.mean([f.confirmation_seconds for f in found]),
                np.mean([f.candidates for f in found]),
                np.mean([f.bred_elites for f in found]),
            ]
            share = f"{bred} of {len(found)} ({100 * bred / len(found):.0f} %)"
            cells.append([name, arm, share, *(f"{mean:.1f}" for mean in means)])
    columns = [
        *("set", "arm", "winners bred in generation 1 or later", "evolution, s"),
        *("confirmation, s", "candidates", "bred elites"),
    ]
    return markdown_table(columns, cells)
