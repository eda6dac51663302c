"""Where labelled images come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biotune.images.sources.base import ImageSource
from biotune.images.sources.digits import DigitsSource
from biotune.images.sources.folders import ImageFolderSource
from biotune.images.sources.table import ImageTableSource, LabelTable
from biotune.images.sources.torchvision_sets import (
    TORCHVISION_SETS,
    TorchvisionSet,
    TorchvisionSource,
)

__all__ = [
    "SOURCES",
    "DigitsSource",
    "ImageFolderSource",
    "ImageSource",
    "ImageTableSource",
    "LabelTable",
    "TorchvisionSource",
    "open_source",
]


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """What one value of ``prepare.source`` stands for.

    Attributes:
        open: makes the source, from ``prepare.path``, the ``background`` and the table of labels.
        needs_table: whether ``prepare.table`` says where the labels are; for all others it is null.
        carried_by: the library that brings the images along, so that ``prepare.path`` is not
            looked at; empty if it is.
        downloaded: what is known of the images before they are there; None if nothing downloads
            them.
    """

    open: Callable[[Path, str, LabelTable | None], ImageSource]
    needs_table: bool = False
    carried_by: str = ""
    downloaded: TorchvisionSet | None = None


def _open_table(folder: Path, background: str, table: LabelTable | None) -> ImageSource:
    if table is None:
        raise ValueError("prepare.source: image_csv needs prepare.table, which is null")
    return ImageTableSource(folder, table, background)


def _torchvision(name: str) -> SourceKind:
    return SourceKind(
        open=lambda folder, background, table: TorchvisionSource(name, folder),
        downloaded=TORCHVISION_SETS[name],
    )


SOURCES: Final[Mapping[str, SourceKind]] = {
    "digits": SourceKind(
        open=lambda folder, background, table: DigitsSource(), carried_by="scikit-learn"
    ),
    "image_folder": SourceKind(
        open=lambda folder, background, table: ImageFolderSource(folder, background)
    ),
    "image_csv": SourceKind(open=_open_table, needs_table=True),
    **{name: _torchvision(name) for name in TORCHVISION_SETS},
}
"""What ``prepare.source`` may be. A new source is a module beside this one, and a line here."""


def open_source(
    name: str, path: Path, *, background: str = "white", table: LabelTable | None = None
) -> ImageSource:
    """The source of images that ``prepare.source`` names.

    Args:
        name: a key of :data:`SOURCES`.
        path: where the images are, or where torchvision puts them; not looked at for ``digits``.
        background: what shows through transparent pixels, a colour as CSS writes it.
        table: for ``image_csv`` where the labels are.

    Raises:
        ValueError: for an unknown name, an unusable folder or table, or a table that the source
            has no use for.
        FileNotFoundError: if there is no such folder or table.
        OSError: for a data set that cannot be downloaded.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown prepare.source {name!r}: choose one of {', '.join(SOURCES)}")
    if table is not None and not SOURCES[name].needs_table:
        raise ValueError(f"prepare.source: {name} has no use for prepare.table: set it to null")
    return SOURCES[name].open(path, background, table)
