"""The prepared dataset: every image decoded and resized once, memory-mapped ever after.

A folder of four files, which are a function of the images and the arguments alone:

- ``images.npy``: uint8 ``[N, S, S, 3]``
- ``samples.csv``: ``path, label, split`` of every image, in that order; the label is the class name
- ``rejected.csv``: the images that were left out, and why
- ``dataset.json``: classes, image size, counts, original sizes, fingerprint; size and SHA-256 of
  each of the other files, and of itself without that last line
"""

from __future__ import annotations

import csv
import hashlib
import json
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from biotune.data.splits import SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

IMAGES_FILE: Final = "images.npy"
SAMPLES_FILE: Final = "samples.csv"
REJECTED_FILE: Final = "rejected.csv"
DATASET_FILE: Final = "dataset.json"
FILES: Final = frozenset({IMAGES_FILE, SAMPLES_FILE, REJECTED_FILE, DATASET_FILE})

_UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    csv.Error,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
)
"""What the readers of JSON, CSV and NumPy's header say of bytes that make no sense."""


class Sample(NamedTuple):
    """A row of ``samples.csv``."""

    path: str
    label: str
    split: str


class Rejected(NamedTuple):
    """A row of ``rejected.csv``: an image that is not in the prepared dataset.

    Attributes:
        path: as the source has it.
        label: its class's name.
        split: where it would have been.
        kind: ``unusable`` (cannot be read), ``contradiction`` (the same picture has two labels), or
            ``copy`` (a later split has the same picture).
        reason: for people.
    """

    path: str
    label: str
    split: str
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """A prepared dataset, opened. The images stay on disk until they are looked at.

    Pickled, it is the name of its folder, so that handing it to another process costs nothing.

    Attributes:
        folder: where it was opened.
        images: memory-mapped, read-only, uint8 RGB ``[N, S, S, 3]``, 0 to 255.
        labels: class of each image, index into ``classes``, int64 ``[N]``.
        splits: train, validation or test, ``[N]``.
        paths: what identifies each image in its source, ``[N]``.
        classes: class names; their order is the order of a classifier's outputs.
        image_size: S, in pixels.
        source: what ``prepare.source`` named.
        fingerprint: of ``images.npy`` and ``samples.csv``; see :func:`fingerprint`.
        original_sizes: width and height in pixels of the ``smallest`` and the ``largest`` image, by
            area.
    """

    folder: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    paths: list[str]
    classes: tuple[str, ...]
    image_size: int
    source: str
    fingerprint: str
    original_sizes: dict[str, tuple[int, int]]

    @classmethod
    def open(cls, folder: Path) -> PreparedImages:
        """Open what :func:`prepare_images` wrote. The images are not read; see :meth:`check_files`.

        Raises:
            FileNotFoundError: if one of its files is missing.
            ValueError: if a file is damaged, or the files do not belong together.
        """
        for name in sorted(FILES):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: run the prepare stage first")
        try:
            dataset = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
            if dataset["checksum"] != dataset_checksum(dataset):
                raise ValueError(f"{DATASET_FILE} was changed since it was written")
            images = np.load(folder / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
            samples = [Sample(*row) for row in _read_rows(folder / SAMPLES_FILE, Sample._fields)]
            index_of = {name: index for index, name in enumerate(dataset["classes"])}
            prepared = cls(
                folder=folder,
                images=images,
                labels=np.array([index_of[sample.label] for sample in samples], dtype=np.int64),
                splits=np.array([sample.split for sample in samples], dtype="<U10"),
                paths=[sample.path for sample in samples],
                classes=tuple(dataset["classes"]),
                image_size=dataset["image_size"],
                source=dataset["source"],
                fingerprint=dataset["fingerprint"],
                original_sizes={n: (w, h) for n, (w, h) in dataset["original_sizes"].items()},
            )
            prepared._check()
        except KeyError as error:
            raise _damaged(folder, f"{error} is not in {DATASET_FILE}") from error
        except _UNREADABLE as error:
            raise _damaged(folder, str(error)) from error
        return prepared

    def check_files(self) -> None:
        """Hold every file against its size and SHA-256; it reads every image once.

        Raises:
            ValueError: naming the first file that is not as it was prepared.
        """
        dataset = json.loads((self.folder / DATASET_FILE).read_text(encoding="utf-8"))
        for name, written in dataset["files"].items():
            if describe_file(self.folder / name) != written:
                raise _damaged(self.folder, f"{name} was changed since it was written")

    def rejected(self) -> list[Rejected]:
        """The images that were left out, and why.

        Raises:
            ValueError: if the file is damaged.
        """
        try:
            rows = _read_rows(self.folder / REJECTED_FILE, Rejected._fields)
        except _UNREADABLE as error:
            raise _damaged(self.folder, str(error)) from error
        return [Rejected(*row) for row in rows]

    def indices(self, split: str) -> NDArray[np.int64]:
        """The images of a split: ascending indices into ``images``, ``labels`` and ``paths``.

        Raises:
            ValueError: for an unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == split).astype(np.int64)

    def __reduce__(self) -> tuple[Callable[[Path], PreparedImages], tuple[Path]]:
        # Otherwise every image would be copied into the pickle.
        return (PreparedImages.open, (self.folder,))

    def _check(self) -> None:
        expected = (len(self.paths), self.image_size, self.image_size, 3)
        if self.images.dtype != np.uint8 or self.images.shape != expected:
            raise ValueError(
                f"{IMAGES_FILE} holds {self.images.dtype} {list(self.images.shape)}, but "
                f"{SAMPLES_FILE} and {DATASET_FILE} say uint8 {list(expected)}"
            )
        unknown = sorted(set(self.splits.tolist()) - set(SPLITS))
        if unknown:
            raise ValueError(f"{SAMPLES_FILE} has the unknown split {unknown[0]!r}")


def describe_file(file: Path) -> dict[str, Any]:
    """What ``dataset.json`` says of a file: ``bytes``, and ``sha256`` in hexadecimal."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def fingerprint(files: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of the checksums of ``images.npy`` and ``samples.csv``, in hexadecimal.

    Args:
        files: file name → as :func:`describe_file` describes it.
    """
    text = "".join(files[name]["sha256"] for name in (IMAGES_FILE, SAMPLES_FILE))
    return hashlib.sha256(text.encode()).hexdigest()


def dataset_checksum(dataset: Mapping[str, Any]) -> str:
    """SHA-256 of what ``dataset.json`` says beside its ``checksum``, in hexadecimal."""
    said = {key: value for key, value in dataset.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _read_rows(file: Path, columns: tuple[str, ...]) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    if tuple(header) != columns or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{file.name} must have the columns {', '.join(columns)}, got {header}")
    return rows


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder} is damaged ({what}): run the prepare stage again")
