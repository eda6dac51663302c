"""Where labelled images come from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from biotune.images.sources.base import ImageSource
from biotune.images.sources.digits import DigitsSource
from biotune.images.sources.folders import ImageFolderSource
from biotune.images.sources.table import ImageTableSource, LabelTable
from biotune.images.sources.torchvision_sets import TORCHVISION_SETS, TorchvisionSource

SOURCES: Final = ("digits", "image_folder", "image_csv", *TORCHVISION_SETS)
"""What ``prepare.source`` may be."""

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


def open_source(
    name: str, path: Path, *, background: str = "white", table: LabelTable | None = None
) -> ImageSource:
    """The source of images that ``prepare.source`` names.

    Args:
        name: one of :data:`SOURCES`.
        path: where the images are, or where torchvision puts them; not looked at for ``digits``.
        background: what shows through transparent pixels, a colour as CSS writes it.
        table: for ``image_csv`` where the labels are.

    Raises:
        ValueError: for an unknown name, or an unusable folder or table.
        FileNotFoundError: if there is no such folder or table.
        OSError: for a data set that cannot be downloaded.
    """
    if name == "digits":
        return DigitsSource()
    if name == "image_folder":
        return ImageFolderSource(path, background)
    if name == "image_csv":
        if table is None:
            raise ValueError("prepare.source: image_csv needs prepare.table, which is null")
        return ImageTableSource(path, table, background)
    if name in TORCHVISION_SETS:
        return TorchvisionSource(name, path)
    raise ValueError(f"unknown prepare.source {name!r}: choose one of {', '.join(SOURCES)}")
