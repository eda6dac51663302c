"""The prepare stage: from labelled images to the arrays that every later stage reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tqdm import tqdm

from biotune.data.prepared import PreparedImages, prepare_images
from biotune.data.sources import open_source
from biotune.data.splits import SPLITS
from pipeline.console import print_table
from pipeline.params import Params


def run(params: Params, *, images: Path, out: Path) -> PreparedImages:
    """Split, decode and resize every image into ``out``, and print how many of what there are.

    Args:
        params: its ``prepare`` section is used.
        images: where an image folder's images are.
        out: folder to write, whole or not at all.

    Raises:
        ValueError, OSError: for images or counts that cannot be used; the message says which.
    """
    section = params.prepare
    source = open_source(section.source, images)
    with tqdm(total=len(source.paths), desc="prepare", unit="image") as progress:
        prepared = prepare_images(
            source,
            out,
            image_size=section.image_size,
            train_images=section.train_images,
            validation_images=section.validation_images,
            seed=section.seed,
            on_image=progress.update,
        )
    _print_summary(prepared)
    return prepared


def _print_summary(prepared: PreparedImages) -> None:
    counts = Counter(zip(prepared.labels.tolist(), prepared.splits.tolist(), strict=True))
    rows: list[list[object]] = [
        [name, *(counts[label, split] for split in SPLITS)]
        for label, name in enumerate(prepared.classes)
    ]
    rows.append(["all", *(len(prepared.indices(split)) for split in SPLITS)])
    size = prepared.image_size
    print_table(f"Images of {size} x {size} pixels", ["class", *SPLITS], rows)
    copies = prepared.duplicates_across_splits["count"]
    if copies:
        print(
            f"Warning: {copies} images have an exact copy in another split, so the test will look "
            f"too good; dataset.json lists them."
        )
