"""From a source of images to a prepared dataset: split, decode, resize, leave out, write."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from biotune.data.prepared import (
    DATASET_FILE,
    FILES,
    IMAGES_FILE,
    REJECTED_FILE,
    SAMPLES_FILE,
    PreparedImages,
    Rejected,
    Sample,
    dataset_checksum,
    describe_file,
    fingerprint,
)
from biotune.data.splits import SPLITS, assign_splits
from biotune.files import put_folder, scratch_beside
from biotune.images.copies import contradictions, copies_across_splits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from biotune.images.reading import ReadImage
    from biotune.images.sources import ImageSource

_NAMED_IN_ERRORS: Final = 10


class TooManyRejectedError(ValueError):
    """More images cannot be used than ``prepare.max_rejected`` allows."""


def prepare_images(
    source: ImageSource,
    out: Path,
    *,
    image_size: int,
    train_images: int | None,
    validation_images: int | None,
    seed: int,
    max_rejected: float = 0.05,
    on_image: Callable[[], object] | None = None,
) -> PreparedImages:
    """Split a source's images, decode and resize each one, and write them to ``out``.

    The images are streamed to disk, so that datasets larger than memory work. ``out`` appears
    complete or not at all; an earlier prepared dataset there is replaced only then. What cannot be
    used is left out, and so are copies: of images with two labels all, and of a picture that is in
    two splits the one in the earlier split (train, validation, test).

    Args:
        source: labelled images.
        out: folder to write; its parents are created.
        image_size: height and width in pixels to which every image is stretched.
        train_images: how many to train on; None for 70 %, or all of a train folder's.
        validation_images: how many to validate on; None for 15 %, or all of a validation folder's.
        seed: decides which image goes to which split.
        max_rejected: share of the images, 0 to 1, that may be unusable or have two labels.
        on_image: called after each image, for a progress bar.

    Returns:
        The prepared dataset, opened at ``out``.

    Raises:
        ValueError: if the sizes, counts or classes do not fit, before anything is decoded; or if a
            class has no image left.
        TooManyRejectedError: names the first of them.
        FileExistsError: if ``out`` is something else than a prepared dataset.
        BlockingIOError: if another process is preparing the same ``out``.
        OSError: if there is not enough space for the images.
    """
    chosen, splits = _choose(source, image_size, train_images, validation_images, seed)
    _check_replaceable(out)
    with scratch_beside(out, alone=True) as scratch:  # so that renames stay in one file system
        fresh = scratch / "new"
        fresh.mkdir()
        listed = [
            Sample(source.paths[index], source.classes[source.labels[index]], split)
            for index, split in zip(chosen, splits, strict=True)
        ]
        read = _write_images(fresh / IMAGES_FILE, source, chosen, image_size, on_image)
        rejected = _rejected(read, listed)
        _check_rejected(rejected, len(listed), max_rejected)
        samples = [sample for row, sample in enumerate(listed) if row not in rejected]
        _check_classes(source.classes, samples)
        kept = [row for row in range(len(read)) if row not in rejected]
        _keep_rows(fresh / IMAGES_FILE, kept, image_size)
        sizes = [read[row].size for row in kept]
        _describe(fresh, source, samples, list(rejected.values()), sizes, image_size)
        put_folder(fresh, out, scratch / "old")
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
    if not out.is_dir() or not {child.name for child in out.iterdir()} <= FILES:
        raise FileExistsError(
            f"{out} exists and is not a prepared dataset: choose another folder, or move it away"
        )


def _write_images(
    file: Path,
    source: ImageSource,
    chosen: NDArray[np.int64],
    size: int,
    on_image: Callable[[], object] | None,
) -> list[ReadImage]:
    """Write each image to its row, zeros for those that cannot be used; what they are."""
    from biotune.images.reading import read_images  # torch; opening a dataset does not need it

    needed, free = len(chosen) * size * size * 3, shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"{file.name} needs {needed:,} bytes, but only {free:,} are free there")
    header = _header(len(chosen), size)
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + needed)
    read = []
    for image in read_images(source, chosen.tolist(), size, file, len(header)):
        read.append(image)
        if on_image is not None:
            on_image()
    return read


def _rejected(read: Sequence[ReadImage], listed: Sequence[Sample]) -> dict[int, Rejected]:
    """Row → why it is left out, ascending."""
    why = {row: ("unusable", image.unusable) for row, image in enumerate(read) if image.unusable}
    rows = [row for row in range(len(read)) if row not in why]
    disputed = contradictions([read[row].digest for row in rows], [listed[row] for row in rows])
    why |= {rows[place]: ("contradiction", reason) for place, reason in disputed.items()}
    rows = [row for row in rows if row not in why]
    copies = copies_across_splits([read[row].digest for row in rows], [listed[row] for row in rows])
    why |= {rows[place]: ("copy", reason) for place, reason in copies.items()}
    return {row: Rejected(*listed[row], *why[row]) for row in sorted(why)}


def _check_rejected(rejected: Mapping[int, Rejected], images: int, allowed: float) -> None:
    counted = [image for image in rejected.values() if image.kind != "copy"]
    if len(counted) <= allowed * images:
        return
    named = [f"  {image.path}: {image.reason}" for image in counted[:_NAMED_IN_ERRORS]]
    more = len(counted) - len(named)
    raise TooManyRejectedError(
        "\n".join(
            [
                f"{len(counted)} of {images} images cannot be used, prepare.max_rejected allows "
                f"{allowed:.1%} of them; repair or remove them, or raise it:",
                *named,
                *([f"  and {more} more"] if more else []),
            ]
        )
    )


def _check_classes(classes: Sequence[str], samples: Sequence[Sample]) -> None:
    """Refuse samples of which a class has lost all images to learn from, or to choose by."""
    counts = Counter((sample.split, sample.label) for sample in samples)
    for split in ("train", "validation"):
        lost = [name for name in classes if not counts[split, name]]
        if lost:
            raise ValueError(
                f"the {split} split has no usable image of class {', '.join(lost[:5])} left, after "
                "those that cannot be read and copies are left out: add images of it"
            )
    if not any(sample.split == "test" for sample in samples):
        raise ValueError("the test split has no usable image left: add some")


def _keep_rows(file: Path, rows: Sequence[int], size: int) -> None:
    """Close the gaps in place, and set the number of images."""
    header, row_bytes = len(_header(0, size)), size * size * 3
    with file.open("r+b") as stream:
        for place, row in enumerate(rows):
            if place != row:
                stream.seek(header + row * row_bytes)
                pixels = stream.read(row_bytes)
                stream.seek(header + place * row_bytes)
                stream.write(pixels)
        stream.truncate(header + len(rows) * row_bytes)
        stream.seek(0)
        stream.write(_header(len(rows), size))


def _header(count: int, size: int) -> bytes:
    """The beginning of a ``.npy`` file; numpy makes it as long for any number of images."""
    stream = io.BytesIO()
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def _describe(
    fresh: Path,
    source: ImageSource,
    samples: Sequence[Sample],
    rejected: Sequence[Rejected],
    sizes: Sequence[tuple[int, int]],
    image_size: int,
) -> None:
    """Write all but the images."""
    _write_csv(fresh / SAMPLES_FILE, Sample._fields, samples)
    _write_csv(fresh / REJECTED_FILE, Rejected._fields, rejected)
    counts = Counter((sample.split, sample.label) for sample in samples)
    files = {name: describe_file(fresh / name) for name in sorted(FILES - {DATASET_FILE})}
    dataset: dict[str, Any] = {
        "source": source.name,
        "image_size": image_size,
        "classes": list(source.classes),
        "counts": {s: {name: counts[s, name] for name in source.classes} for s in SPLITS},
        "rejected": dict(Counter(image.kind for image in rejected)),
        "original_sizes": {"smallest": min(sizes, key=prod), "largest": max(sizes, key=prod)},
        "fingerprint": fingerprint(files),
        "files": files,
    }
    dataset["checksum"] = dataset_checksum(dataset)
    text = json.dumps(dataset, indent=2, ensure_ascii=False)
    (fresh / DATASET_FILE).write_text(text + "\n", encoding="utf-8")


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
