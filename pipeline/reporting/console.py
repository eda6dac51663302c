"""What a person sees while a stage works and when it is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from biotune.plan import FineTunePlan


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a title; the first column left-aligned, the others right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)


def print_plan(title: str, plan: FineTunePlan, sizes: Mapping[str, int], base_lr: float) -> None:
    """Print a plan block by block.

    Args:
        title: above it.
        plan: the plan.
        sizes: number of parameters of each block.
        base_lr: the rate at multiplier 1.
    """
    rows = [
        (
            block,
            "frozen" if multiplier is None else f"{multiplier:g}x",
            "" if multiplier is None else f"{multiplier * base_lr:.2g}",
            f"{sizes[block]:,}",
        )
        for block, multiplier in plan.items()
    ]
    print_table(title, ["block", "learns at", "learning rate", "parameters"], rows)


def percent(share: float, digits: int = 1) -> str:
    """0.9731 as '97.3 %'."""
    return f"{100 * share:.{digits}f} %"
