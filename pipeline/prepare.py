"""The prepare stage: from labelled images to the arrays that every later stage reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tqdm import tqdm

from biotune.data.prepared import PreparedImages
from biotune.data.splits import SPLITS
from biotune.images.preparing import prepare_images
from biotune.images.sources import ImageSource, LabelTable, open_source
from pipeline.params import Params
from pipeline.reporting.console import print_table

SHOWN_REASONS = 10


def run(params: Params, *, images: Path, out: Path) -> PreparedImages:
    """Split, decode and resize every image into ``out``, and print how many of what there are.

    Args:
        params: its ``prepare`` section is used.
        images: where the images are, or are downloaded to.
        out: folder to write, whole or not at all.

    Raises:
        ValueError, OSError: for images or counts that cannot be used; the message says which.
    """
    section = params.prepare
    source = source_of(params, images)
    with tqdm(total=len(source.paths), desc="prepare", unit="image") as progress:
        prepared = prepare_images(
            source,
            out,
            image_size=section.image_size,
            train_images=section.train_images,
            validation_images=section.validation_images,
            seed=section.seed,
            max_rejected=section.max_rejected,
            on_image=progress.update,
        )
    _print_summary(prepared)
    _print_rejected(prepared, out)
    return prepared


def source_of(params: Params, images: Path) -> ImageSource:
    """Where the images come from.

    Raises:
        ValueError, OSError: as :func:`biotune.images.open_source`.
    """
    section = params.prepare
    table = None
    if section.table is not None:
        columns = section.table.model_dump(exclude={"file"})
        table = LabelTable(file=Path(section.table.file), **columns)
    return open_source(section.source, images, background=section.background, table=table)


def _print_summary(prepared: PreparedImages) -> None:
    counts = Counter(zip(prepared.labels.tolist(), prepared.splits.tolist(), strict=True))
    rows: list[list[object]] = [
        [name, *(counts[label, split] for split in SPLITS)]
        for label, name in enumerate(prepared.classes)
    ]
    rows.append(["all", *(len(prepared.indices(split)) for split in SPLITS)])
    size = prepared.image_size
    print_table(f"Images of {size} x {size} pixels", ["class", *SPLITS], rows)
    smallest, largest = (
        "{} x {}".format(*prepared.original_sizes[which]) for which in ("smallest", "largest")
    )
    sizes = f"all {smallest}" if smallest == largest else f"{smallest} to {largest}"
    print(f"They were {sizes} pixels (width x height), and were stretched to that.")
    untested = [name for label, name in enumerate(prepared.classes) if not counts[label, "test"]]
    if untested:
        print(f"Warning: no test image of {', '.join(untested)}; nothing will be known of these.")


def _print_rejected(prepared: PreparedImages, out: Path) -> None:
    rejected = prepared.rejected()
    if not rejected:
        return
    by_kind = Counter(file.kind for file in rejected)
    said = {
        "unusable": "{} cannot be read",
        "contradiction": "{} are in two classes at once",
        "copy": "{} are copies of an image in a later split",
    }
    kinds = ", ".join(text.format(by_kind[k]) for k, text in said.items() if by_kind[k])
    print(f"Left out ({kinds}); {out / 'rejected.csv'} has them all:")
    rows = [(file.path, file.label, file.split, file.reason) for file in rejected[:SHOWN_REASONS]]
    print_table("", ["image", "class", "split", "why"], rows)
