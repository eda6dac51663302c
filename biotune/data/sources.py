"""Where labelled images come from: scikit-learn's handwritten digits, or folders of files."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

SOURCES: Final = ("digits", "image_folder")

_SPLIT_FOLDERS: Final = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
# Formats that Pillow recognises and cannot decode by itself, or only by running Ghostscript.
_NOT_DECODED: Final = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_LAYOUTS: Final = (
    "expected one folder per class with images inside, or the folders train, validation and test "
    "(or train and test) with one folder per class in each"
)


class ImageSource(Protocol):
    """Labelled images that can be read one at a time, in an order that is always the same.

    Attributes:
        name: what ``prepare.source`` calls it.
        classes: class names in natural order (class2 before class10).
        paths: what identifies each image, relative to the source, ``/``-separated, ``[N]``.
        labels: class of each image, index into ``classes``, int64 ``[N]``.
        splits: train, validation or test for each image, ``[N]``, if the source says so.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> list[str]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def splits(self) -> list[str] | None: ...

    def load(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 RGB ``[H, W, 3]``, 0 to 255; sizes may differ between images."""
        ...


class DigitsSource:
    """The 1,797 real handwritten digits, 8 × 8 pixels, that scikit-learn carries with it.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, doi 10.24432/C50P49. Bright digits on black; grey levels 0 to 16
    are scaled to 0 to 255.
    """

    name = "digits"
    splits: list[str] | None = None

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # a slow import that image folders do not need

        digits = load_digits()
        self._grey: NDArray[np.uint8] = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self.classes = tuple(str(name) for name in digits.target_names)
        self.labels: NDArray[np.int64] = digits.target.astype(np.int64)
        self.paths = [f"digits/{index:04d}" for index in range(len(self.labels))]

    def load(self, index: int) -> NDArray[np.uint8]:
        """One digit, uint8 ``[8, 8, 3]`` with three equal channels."""
        return np.repeat(self._grey[index][:, :, None], 3, axis=2)


class ImageFolderSource:
    """Image files in one folder per class, in folders for train, validation and test or without.

    The folder's name is the class. Images in deeper folders belong to the class folder they are
    below. Hidden files, and files whose ending is no image format of Pillow's, are ignored.

    Args:
        folder: holds the class folders, or the split folders ``train``, ``validation`` (or
            ``val``, ``valid``) and ``test`` with class folders inside.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for any other layout, or a class folder without images.
    """

    name = "image_folder"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: prepare.path must be one, {_LAYOUTS}")
        self.folder = folder
        split_folders = _find_split_folders(folder)
        files = [
            (path.relative_to(folder).as_posix(), class_folder.name, split)
            for split, parent in (split_folders or {"": folder}).items()
            for class_folder in _class_folders(parent)
            for path in _image_files(class_folder)
        ]
        _check_names(path for path, _, _ in files)
        files.sort(key=lambda file: _natural_key(file[0]))
        self.paths = [path for path, _, _ in files]
        self.classes = tuple(sorted({name for _, name, _ in files}, key=_natural_key))
        self._check_classes((split_folders or {"": folder}).values())
        index_of = {name: index for index, name in enumerate(self.classes)}
        self.labels: NDArray[np.int64] = np.array([index_of[n] for _, n, _ in files], np.int64)
        self.splits = [split for _, _, split in files] if split_folders else None

    def load(self, index: int) -> NDArray[np.uint8]:
        """One image as a viewer shows it, uint8 RGB ``[H, W, 3]``.

        The camera's rotation is applied, transparency is laid on white, 16-bit grey is scaled from
        its full range, and of several frames or pages the first is taken.

        Raises:
            ValueError: if the file cannot be decoded; names the file.
        """
        path = self.folder / self.paths[index]
        try:
            with Image.open(path, formats=sorted(set(_formats_by_ending().values()))) as image:
                return _to_rgb(image)
        except Exception as error:
            # Pillow's decoders raise nearly anything on damaged files (OSError, SyntaxError,
            # struct.error, IndexError, ...), none of which names the file.
            raise ValueError(
                f"{path} cannot be read as an image ({error}): repair, convert or remove it"
            ) from error

    def _check_classes(self, parents: Iterable[Path]) -> None:
        names = {folder.name for parent in parents for folder in _class_folders(parent)}
        empty = sorted(names - set(self.classes), key=_natural_key)
        if empty:
            raise ValueError(
                f"{self.folder}: no image that can be read in class folder "
                f"{', '.join(empty[:5])}: add images or remove the folder"
            )
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.folder}: a classifier needs two classes or more, found "
                f"{', '.join(self.classes) or 'no class folder'}; {_LAYOUTS}"
            )


def open_source(name: str, path: Path) -> ImageSource:
    """The source of images that ``prepare.source`` names.

    Args:
        name: ``digits`` (embedded; ``path`` is not looked at) or ``image_folder``.
        path: the folder of images.

    Raises:
        ValueError: for an unknown name, or an unusable folder.
        FileNotFoundError: if there is no such folder.
    """
    if name == "digits":
        return DigitsSource()
    if name == "image_folder":
        return ImageFolderSource(path)
    raise ValueError(f"unknown prepare.source {name!r}: choose one of {', '.join(SOURCES)}")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        # Pillow would clip 16-bit grey at 255, not scale it. Netpbm files with 16 bits come as "I".
        grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {mode}), and nothing says which are black and "
            f"white; save it with 8 or 16 bits"
        )
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return np.asarray(upright.convert("RGB"))


def _find_split_folders(folder: Path) -> dict[str, Path] | None:
    """Split → its folder; None if the folders are classes. Split names are matched in any case."""
    folders = _class_folders(folder)
    named = [child for child in folders if child.name.lower() in _SPLIT_FOLDERS]
    # A vehicle dataset may well have a class "train", next to others and with images right inside.
    alone = len(named) == 1 and named[0].name.lower() == "train"
    if not named or (alone and len(folders) > 1 and not _class_folders(named[0])):
        return None
    found = {_SPLIT_FOLDERS[child.name.lower()]: child for child in named}
    complete = set(found) in ({"train", "validation", "test"}, {"train", "test"})
    if not complete or len(found) != len(named) or len(named) != len(folders):
        names = ", ".join(child.name for child in folders)
        raise ValueError(f"{folder} holds the folders {names}; {_LAYOUTS}")
    for child in named:
        if not _class_folders(child):
            raise ValueError(f"{child} holds no class folders; {_LAYOUTS}")
    return found


def _class_folders(folder: Path) -> list[Path]:
    children = (child for child in folder.iterdir() if child.is_dir())
    visible = (child for child in children if not child.name.startswith("."))
    return sorted(visible, key=lambda child: _natural_key(child.name))


def _image_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in _formats_by_ending():
                yield path


def _check_names(paths: Iterable[str]) -> None:
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the file name {path!r} is not valid UTF-8: rename it") from error


@cache
def _formats_by_ending() -> dict[str, str]:
    endings = Image.registered_extensions()  # loads Pillow's plugins, which fill Image.OPEN
    readable = set(Image.OPEN) - _NOT_DECODED
    return {ending: name for ending, name in endings.items() if name in readable}


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """Orders names as people do: runs of digits by their value, letters without their case."""
    parts = re.split(r"(\d+)", name.casefold())
    # Every second part is a number, so that a text is never compared with a number.
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
