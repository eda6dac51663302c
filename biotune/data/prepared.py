"""The prepared dataset: every image decoded and resized once, memory-mapped ever after.

A folder of three files, which are a function of the images and the arguments alone:

- ``images.npy``: uint8 ``[N, S, S, 3]``
- ``samples.csv``: ``path, label, split`` of every image, in that order; the label is the class name
- ``dataset.json``: classes, image size, counts, copies across splits, fingerprint
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from biotune.data.splits import SPLITS, assign_splits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from biotune.data.sources import ImageSource

_IMAGES: Final = "images.npy"
_SAMPLES: Final = "samples.csv"
_DATASET: Final = "dataset.json"
_FILES: Final = frozenset({_IMAGES, _SAMPLES, _DATASET})
_COLUMNS: Final = ["path", "label", "split"]
_LISTED_DUPLICATES: Final = 20


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
        fingerprint: SHA-256 of ``images.npy`` and ``samples.csv``, in hexadecimal.
        duplicates_across_splits: ``{"count": …, "pairs": […]}``: images of which an exact copy is
            in an earlier split (train, validation, test), and the first 20 of them, each as
            ``{split: path, split: path}``. More than a few make the test look too good.
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
    duplicates_across_splits: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> PreparedImages:
        """Open what :func:`prepare_images` wrote. The fingerprint is read, not computed again.

        Raises:
            FileNotFoundError: if one of its files is missing.
            ValueError: if a file is damaged, or the files do not belong together.
        """
        for name in sorted(_FILES):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: run the prepare stage first")
        try:
            dataset = json.loads((folder / _DATASET).read_text(encoding="utf-8"))
            images = np.load(folder / _IMAGES, mmap_mode="r", allow_pickle=False)
            paths, names, splits = _read_samples(folder / _SAMPLES)
            index_of = {name: index for index, name in enumerate(dataset["classes"])}
            prepared = cls(
                folder=folder,
                images=images,
                labels=np.array([index_of[name] for name in names], dtype=np.int64),
                splits=np.array(splits, dtype="<U10"),
                paths=paths,
                classes=tuple(dataset["classes"]),
                image_size=dataset["image_size"],
                source=dataset["source"],
                fingerprint=dataset["fingerprint"],
                duplicates_across_splits=dataset["duplicates_across_splits"],
            )
            prepared._check()
        except KeyError as error:
            raise _damaged(folder, f"{error} is not in {_DATASET}") from error
        except (ValueError, TypeError, EOFError) as error:
            raise _damaged(folder, str(error)) from error
        return prepared

    def check_fingerprint(self) -> None:
        """Compute the fingerprint again; it reads every image once.

        Raises:
            ValueError: if a file is not as it was prepared.
        """
        if _fingerprint(self.folder / _IMAGES, self.folder / _SAMPLES) != self.fingerprint:
            raise _damaged(self.folder, f"{_IMAGES} or {_SAMPLES} was changed since")

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
                f"{_IMAGES} holds {self.images.dtype} {list(self.images.shape)}, but {_SAMPLES} "
                f"and {_DATASET} say uint8 {list(expected)}"
            )
        unknown = sorted(set(self.splits.tolist()) - set(SPLITS))
        if unknown:
            raise ValueError(f"{_SAMPLES} has the unknown split {unknown[0]!r}")


def prepare_images(
    source: ImageSource,
    out: Path,
    *,
    image_size: int,
    train_images: int | None,
    validation_images: int | None,
    seed: int,
    on_image: Callable[[], object] | None = None,
) -> PreparedImages:
    """Split a source's images, decode and resize each one, and write them to ``out``.

    The images are streamed to disk, so that datasets larger than memory work. ``out`` appears
    complete or not at all; an earlier prepared dataset there is replaced only then.

    Args:
        source: labelled images.
        out: folder to write; its parents are created.
        image_size: height and width in pixels to which every image is stretched.
        train_images: how many to train on; None for 70 %, or all of a train folder's.
        validation_images: how many to validate on; None for 15 %, or all of a validation folder's.
        seed: decides which image goes to which split.
        on_image: called after each image, for a progress bar.

    Returns:
        The prepared dataset, opened at ``out``.

    Raises:
        ValueError: if the sizes, counts or classes do not fit, before anything is decoded; or if
            an image cannot be decoded.
        FileExistsError: if ``out`` is something else than a prepared dataset.
        OSError: if there is not enough space for the images.
    """
    chosen, splits = _choose(source, image_size, train_images, validation_images, seed)
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside `out`, because a rename is only atomic within a file system. What is replaced is
    # moved in here too, and goes with the rest of it.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh = Path(scratch, "new")
        fresh.mkdir()
        digests = _write_images(fresh / _IMAGES, source, chosen, image_size, on_image)
        paths = [source.paths[index] for index in chosen]
        names = [source.classes[source.labels[index]] for index in chosen]
        _write_samples(fresh / _SAMPLES, paths, names, splits)
        dataset = {
            "source": source.name,
            "image_size": image_size,
            "classes": list(source.classes),
            "counts": _counts(source.classes, names, splits),
            "duplicates_across_splits": _duplicates(digests, paths, splits),
            "fingerprint": _fingerprint(fresh / _IMAGES, fresh / _SAMPLES),
        }
        text = json.dumps(dataset, indent=2, ensure_ascii=False)
        (fresh / _DATASET).write_text(text + "\n", encoding="utf-8")
        _swap(fresh, out, Path(scratch, "old"))
    return PreparedImages.open(out)


def _choose(
    source: ImageSource, image_size: int, train: int | None, validation: int | None, seed: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Which images of the source are prepared, ascending, and the split of each."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    absent = sorted(set(range(len(source.classes))) - set(np.unique(source.labels).tolist()))
    if absent:
        raise ValueError(f"class {source.classes[absent[0]]} has no image: add some or remove it")
    names = np.array(source.classes)[source.labels]  # names, not numbers, for the error messages
    splits = assign_splits(names, source.splits, train=train, validation=validation, seed=seed)
    chosen = np.flatnonzero(splits != "").astype(np.int64)
    return chosen, splits[chosen].tolist()


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or not {child.name for child in out.iterdir()} <= _FILES:
        raise FileExistsError(
            f"{out} exists and is not a prepared dataset: choose another folder, or move it away"
        )


def _write_images(
    file: Path,
    source: ImageSource,
    chosen: NDArray[np.int64],
    size: int,
    on_image: Callable[[], object] | None,
) -> list[bytes]:
    """Decode, resize and write the chosen images; the SHA-256 of each."""
    import torch  # slow to import, and opening a prepared dataset does not need it

    from biotune.data.transforms import resize

    shape = (len(chosen), size, size, 3)
    needed, free = int(np.prod(shape)), shutil.disk_usage(file.parent).free
    if needed > free:
        # A memory-mapped file that outgrows the disk kills the process without a word.
        raise OSError(f"{file.name} needs {needed:,} bytes, but only {free:,} are free there")
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    digests = []
    for row, index in enumerate(chosen):
        # A copy, because torch warns of the read-only arrays that Pillow gives.
        original = torch.from_numpy(np.array(source.load(int(index))))
        pixels = resize(original[None], size)[0].permute(1, 2, 0).to(torch.uint8)
        images[row] = pixels.numpy()
        digests.append(hashlib.sha256(images[row].tobytes()).digest())
        if on_image is not None:
            on_image()
    images.flush()
    return digests


def _write_samples(
    file: Path, paths: Sequence[str], names: Sequence[str], splits: Sequence[str]
) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(zip(paths, names, splits, strict=True))


def _read_samples(file: Path) -> tuple[list[str], list[str], list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    if header != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
        raise ValueError(f"{file.name} must have the columns {', '.join(_COLUMNS)}, got {header}")
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _counts(
    classes: Sequence[str], names: Sequence[str], splits: Sequence[str]
) -> dict[str, dict[str, int]]:
    counted = Counter(zip(splits, names, strict=True))
    return {split: {name: counted[split, name] for name in classes} for split in SPLITS}


def _duplicates(
    digests: Sequence[bytes], paths: Sequence[str], splits: Sequence[str]
) -> dict[str, Any]:
    first: dict[bytes, int] = {}
    pairs = []
    for index in sorted(range(len(paths)), key=lambda index: SPLITS.index(splits[index])):
        twin = first.setdefault(digests[index], index)
        if splits[twin] != splits[index]:
            pairs.append({splits[twin]: paths[twin], splits[index]: paths[index]})
    return {"count": len(pairs), "pairs": pairs[:_LISTED_DUPLICATES]}


def _fingerprint(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _swap(fresh: Path, out: Path, old: Path) -> None:
    replaced = out.exists()
    if replaced:
        out.rename(old)
    try:
        fresh.rename(out)
    except OSError:
        if replaced:
            old.rename(out)
        raise


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder} is damaged ({what}): run the prepare stage again")
