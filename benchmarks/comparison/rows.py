"""What is kept of a comparison: tables that are added to, a whole row at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from benchmarks.comparison.arms import Found
from benchmarks.held_out import HeldOutScores
from benchmarks.landscapes.recording import parse_plan, plan_text

TESTED: Final = ("set", "repetition", "plan", "seed", *HeldOutScores._fields)
"""Columns of the table of tested runs."""


@dataclass(frozen=True)
class Row:
    """An arm of a repetition.

    Attributes:
        images: name of the set.
        repetition: seed of the search, and of the split of the images.
        arm: of :data:`~benchmarks.comparison.arms.ARMS`.
        found: what the arm found.
        test: of the winner, mean over fresh training seeds.
        made_by: what it was made with: precision, torch, instruction set, code and images.
    """

    images: str
    repetition: int
    arm: str
    found: Found
    test: HeldOutScores
    made_by: Mapping[str, str]

    def to_row(self) -> dict[str, object]:
        """Under the names of :data:`COLUMNS`."""
        found = {**asdict(self.found), "plan": plan_text(self.found.plan)}
        scores = {f"test_{name}": value for name, value in self.test._asdict().items()}
        row = {"set": self.images, "repetition": self.repetition, "arm": self.arm, **found}
        numbers = {**row, **scores}
        rounded = {n: f"{v:.6g}" if isinstance(v, float) else v for n, v in numbers.items()}
        return {**rounded, **self.made_by}

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Row:
        """What :meth:`to_row` wrote."""
        found = Found(
            plan=parse_plan(row["plan"]),
            origin=row["origin"],
            generation=int(row["generation"]),
            confirmed=float(row["confirmed"]),
            recipe_confirmed=float(row["recipe_confirmed"]),
            candidates=int(row["candidates"]),
            bred_elites=int(row["bred_elites"]),
            evolution_seconds=float(row["evolution_seconds"]),
            confirmation_seconds=float(row["confirmation_seconds"]),
        )
        return cls(
            images=row["set"],
            repetition=int(row["repetition"]),
            arm=row["arm"],
            found=found,
            test=HeldOutScores(*(float(row[f"test_{name}"]) for name in HeldOutScores._fields)),
            made_by={name: row[name] for name in MADE_BY},
        )


MADE_BY: Final = ("fingerprint", "precision", "torch", "instruction_set", "code")
"""The beginning of the images' fingerprint; of a hash of the code that searches and trains."""
COLUMNS: Final = (
    *("set", "repetition", "arm", *(field.name for field in fields(Found))),
    *(f"test_{name}" for name in HeldOutScores._fields),
    *MADE_BY,
)


class Table:
    """A CSV file that is added to; a last line that was torn by a kill is dropped.

    Args:
        file: read if it is there; else it begins with the first row.
        columns: of every row.

    Attributes:
        rows: all that it holds, as text.

    Raises:
        ValueError: if the file has other columns.
    """

    def __init__(self, file: Path, columns: tuple[str, ...]) -> None:
        self._file, self._columns = file, columns
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        self._whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(self._whole))
        if self._whole and tuple(reader.fieldnames or ()) != columns:
            raise ValueError(
                f"{file} is of another benchmark: its first line must be {','.join(columns)}; name "
                "another folder"
            )
        self.rows: list[dict[str, str]] = list(reader)

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row, whole, and on disk when this returns."""
        line = io.StringIO()
        writer = csv.DictWriter(line, self._columns, lineterminator="\n")
        if not self._whole:
            writer.writeheader()
        writer.writerow(row)
        with self._file.open("r+b" if self._file.exists() else "wb") as stream:
            stream.truncate(len(self._whole.encode()))
            stream.seek(0, os.SEEK_END)
            stream.write(line.getvalue().encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._whole += line.getvalue()
        # As it will be read: what is decided by it must not hang on digits that are not kept.
        self.rows.append({name: str(row[name]) for name in self._columns})
