"""Image files whose labels are in a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from biotune.data.decoding import decode, readable_endings
from biotune.files import visible_files
from biotune.images.sources.base import check_names, natural_key
from biotune.images.sources.folders import SPLIT_OF

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelTable:
    """Where the labels are.

    Attributes:
        file: CSV with a header line, UTF-8; columns and quotes as Excel writes them.
        image_column: path of each image, relative to the images' folder, with its ending or
            without (as ISIC-2020 has it).
        label_column: class of each image.
        split_column: train, validation (val, valid) or test; None to divide the images anew.
    """

    file: Path
    image_column: str
    label_column: str
    split_column: str | None = None


class ImageTableSource:
    """Images in a folder, as files at any depth, with their labels in a table.

    Rows whose image is missing are kept, as images that cannot be used. Images that no row names
    are not looked at.

    Args:
        folder: the paths in the table are relative to it.
        table: see :class:`LabelTable`.
        background: what shows through transparent pixels; see :func:`biotune.data.decoding.decode`.

    Raises:
        FileNotFoundError: if the folder or the table is missing.
        ValueError: naming file, line or column, for a table that cannot be read, a row without a
            label, an image in two rows or outside the folder, a name without an ending that two
            files have, an unknown split, or fewer than two classes.
    """

    name = "image_csv"

    def __init__(self, folder: Path, table: LabelTable, background: str) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: prepare.path must hold the images")
        self._folder, self._background = folder, background
        rows = _read(table)
        names = [row[table.image_column].strip() for _, row in rows]
        labels = [row[table.label_column].strip() for _, row in rows]
        _check_rows(table, rows, names, labels)
        self.paths = _with_endings(folder, names)
        check_names(self.paths)
        self.classes = tuple(sorted(set(labels), key=natural_key))
        if len(self.classes) < 2:
            raise ValueError(
                f"{table.file}: a classifier needs two classes or more, the column "
                f"{table.label_column} has {', '.join(self.classes) or 'none'}"
            )
        index_of = {name: index for index, name in enumerate(self.classes)}
        self.labels: NDArray[np.int64] = np.array([index_of[label] for label in labels], np.int64)
        self.splits = _splits(table, rows)

    def load(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 RGB ``[H, W, 3]``; see :func:`biotune.data.decoding.decode`."""
        return decode(self._folder / self.paths[index], self._background)


def _read(table: LabelTable) -> list[tuple[int, dict[str, str]]]:
    """Line number and columns of each row."""
    wanted = [table.image_column, table.label_column]
    wanted += [table.split_column] if table.split_column is not None else []
    try:
        with table.file.open(encoding="utf-8-sig", newline="") as stream:  # Excel writes a mark
            reader = csv.DictReader(stream)
            missing = [name for name in wanted if name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(
                    f"{table.file} has no column {missing[0]!r}; it has "
                    f"{', '.join(reader.fieldnames or []) or 'none'}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {table.file}: prepare.table.file must be one") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table.file} is not readable as CSV in UTF-8: {error}") from error
    short = next((line for line, row in rows if any(row[name] is None for name in wanted)), None)
    if short is not None:
        raise ValueError(f"{table.file}, line {short}: has fewer columns than the header")
    return rows


def _check_rows(
    table: LabelTable,
    rows: list[tuple[int, dict[str, str]]],
    names: list[str],
    labels: list[str],
) -> None:
    first: dict[str, int] = {}
    for (line, _), name, label in zip(rows, names, labels, strict=True):
        if not name or not label:
            what = table.label_column if name else table.image_column
            raise ValueError(f"{table.file}, line {line}: the column {what} is empty")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{table.file}, line {line}: {name} is outside the images' folder; give its path "
                "from there"
            )
        if first.setdefault(name, line) != line:
            raise ValueError(
                f"{table.file}, line {line}: {name} is in line {first[name]} already; an image has "
                "one row"
            )


def _splits(table: LabelTable, rows: list[tuple[int, dict[str, str]]]) -> list[str] | None:
    if table.split_column is None:
        return None
    splits = []
    for line, row in rows:
        said = row[table.split_column].strip()
        if said.lower() not in SPLIT_OF:
            raise ValueError(
                f"{table.file}, line {line}: the split {said!r} is not known; expected one of "
                f"{', '.join(SPLIT_OF)}"
            )
        splits.append(SPLIT_OF[said.lower()])
    return splits


def _with_endings(folder: Path, names: list[str]) -> list[str]:
    """Each name with the ending of the file that it means; as it is, where there is none."""
    endings = readable_endings()
    if all(Path(name).suffix.lower() in endings for name in names):
        return names
    with_ending: dict[str, str] = {}
    for file in visible_files(folder):
        path = file.relative_to(folder)
        if path.suffix.lower() in endings:
            stem = path.with_suffix("").as_posix()
            if stem in with_ending:
                raise ValueError(
                    f"{folder} has both {with_ending[stem]} and {path.as_posix()}: give the "
                    "endings in the table"
                )
            with_ending[stem] = path.as_posix()
    return [with_ending.get(name, name) for name in names]
