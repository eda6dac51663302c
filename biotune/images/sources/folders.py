"""Image files in one folder per class."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from biotune.data.decoding import decode, readable_endings
from biotune.files import visible_files
from biotune.images.sources.base import check_names, natural_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SPLIT_OF: Final = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
"""What a split may be called, in any case → what we call it."""

_LAYOUTS: Final = (
    "expected one folder per class with images inside, or the folders train, validation and test "
    "(or train and test) with one folder per class in each"
)


class ImageFolderSource:
    """Image files in one folder per class, in folders for train, validation and test or without.

    The folder's name is the class. Images in deeper folders belong to the class folder they are
    below, links are followed, and hidden files are not looked at, nor files whose ending is no
    image format of Pillow's.

    Args:
        folder: holds the class folders, or the split folders with class folders inside.
        background: what shows through transparent pixels; see :func:`biotune.data.decoding.decode`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for any other layout, or a class folder without images or behind a link to
            nothing.
    """

    name = "image_folder"

    def __init__(self, folder: Path, background: str) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: prepare.path must be one, {_LAYOUTS}")
        self.folder, self._background = folder, background
        _check_links(folder)
        split_folders = _find_split_folders(folder)
        parents = split_folders or {"": folder}
        files = [
            (path.relative_to(folder).as_posix(), _class_name(class_folder), split)
            for split, parent in parents.items()
            for class_folder in _class_folders(parent)
            for path in _image_files(class_folder)
        ]
        check_names(path for path, _, _ in files)
        files.sort(key=lambda file: natural_key(file[0]))
        self.paths = [path for path, _, _ in files]
        self.classes = tuple(sorted({name for _, name, _ in files}, key=natural_key))
        for parent in parents.values():
            _check_links(parent)
            self._check_classes(parent)
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.folder}: a classifier needs two classes or more, found "
                f"{', '.join(self.classes) or 'no class folder'}; {_LAYOUTS}"
            )
        index_of = {name: index for index, name in enumerate(self.classes)}
        self.labels: NDArray[np.int64] = np.array([index_of[n] for _, n, _ in files], np.int64)
        self.splits = [split for _, _, split in files] if split_folders else None

    def load(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 RGB ``[H, W, 3]``; see :func:`biotune.data.decoding.decode`."""
        return decode(self.folder / self.paths[index], self._background)

    def _check_classes(self, parent: Path) -> None:
        folders = _class_folders(parent)
        empty = [folder for folder in folders if _class_name(folder) not in self.classes]
        if empty:
            raise ValueError(
                f"no image in the class folder {', '.join(map(str, empty[:5]))}: add images or "
                "remove the folder"
            )
        names = [_class_name(folder) for folder in folders]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"{parent} has two folders that read {twice!r} and are written with different "
                "characters: put their images into one"
            )


def _check_links(parent: Path) -> None:
    """A class whose disk is not there must not be left out in silence."""
    for child in parent.iterdir():
        is_image = child.suffix.lower() in readable_endings()
        if child.is_symlink() and not (child.exists() or is_image or child.name.startswith(".")):
            raise ValueError(
                f"{child} is a link to nothing: mount or make the folder that it leads to, or "
                "remove the link"
            )


def _class_name(folder: Path) -> str:
    """A class's name in the composed form, which it has on every system."""
    return unicodedata.normalize("NFC", folder.name)


def _find_split_folders(folder: Path) -> dict[str, Path] | None:
    """Split → its folder; None if the folders are classes."""
    folders = _class_folders(folder)
    named = [child for child in folders if child.name.lower() in SPLIT_OF]
    # A vehicle dataset may well have a class "train", next to others and with images right inside.
    alone = len(named) == 1 and named[0].name.lower() == "train"
    if not named or (alone and len(folders) > 1 and not _class_folders(named[0])):
        return None
    folder_of = {SPLIT_OF[child.name.lower()]: child for child in named}
    complete = set(folder_of) in ({"train", "validation", "test"}, {"train", "test"})
    if not complete or len(folder_of) != len(named) or len(named) != len(folders):
        names = ", ".join(child.name for child in folders)
        raise ValueError(f"{folder} holds the folders {names}; {_LAYOUTS}")
    for child in named:
        if not _class_folders(child):
            raise ValueError(f"{child} holds no class folders; {_LAYOUTS}")
    return folder_of


def _class_folders(folder: Path) -> list[Path]:
    children = (child for child in folder.iterdir() if child.is_dir())
    visible = (child for child in children if not child.name.startswith("."))
    return sorted(visible, key=lambda child: natural_key(child.name))


def _image_files(folder: Path) -> Iterator[Path]:
    endings = readable_endings()
    for path in visible_files(folder):
        if path.suffix.lower() in endings:
            yield path
