"""How fast are images prepared, and in how much memory?

A folder of JPEG files, cut at random from scikit-learn's two photographs, is prepared by BioTune
and read by the loop that people ordinarily write: open, convert, resize, append; then save.
BioTune also splits, looks for copies, and resizes as the exported network does. Each run is a
process of its own that has loaded the libraries before the clock starts; the two take turns.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.reporting import describe_machine, markdown_table, one_line
from biotune.images import ImageFolderSource, prepare_images, reading  # noqa: F401  loads torch

WIDTH, HEIGHT = 500, 375


def write_images(folder: Path, count: int) -> None:
    """JPEG files of two classes, no two alike."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % 2]
        top = rng.integers(0, photo.shape[0] - HEIGHT + 1)
        left = rng.integers(0, photo.shape[1] - WIDTH + 1)
        picture = photo[top : top + HEIGHT, left : left + WIDTH].copy()
        picture[0, 0] = rng.integers(0, 256, 3)
        noise = rng.integers(-6, 7, picture.shape)
        file = folder / ("china", "flower")[number % 2] / f"{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        noisy = (picture.astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, quality=90)


def plain_loop(folder: Path, out: Path, size: int) -> None:
    """Prepare images by the loop that people ordinarily write."""
    images = []
    for file in sorted(folder.rglob("*.jpg")):
        with Image.open(file) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            images.append(np.asarray(resized))
    np.save(out, np.stack(images))


def biotune(folder: Path, out: Path, size: int) -> None:
    """Prepare images by BioTune."""
    prepare_images(
        ImageFolderSource(folder, "white"),
        out,
        image_size=size,
        train_images=None,
        validation_images=None,
        seed=0,
    )


def measured(call: Callable[[Path, Path, int], None], *arguments: Any) -> dict[str, float]:
    """A call's seconds; MiB that the process came to hold more; MiB of the largest it started."""

    def peak(who: int) -> float:
        return resource.getrusage(who).ru_maxrss / 1024

    before, begin = peak(resource.RUSAGE_SELF), time.perf_counter()
    call(*arguments)
    seconds = time.perf_counter() - begin
    more, child = peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "more MiB": more, "largest process started, MiB": child}


@click.command()
@click.option("--images", default=2000, show_default=True, type=click.IntRange(20))
@click.option("--image-size", default=224, show_default=True, type=click.IntRange(16))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(images: int, image_size: int, rounds: int, json_file: Path | None) -> None:
    """Prepare a tenth of the images and all of them, and print a Markdown table.

    \b
    Examples:
      python benchmarks/preparing.py
      python benchmarks/preparing.py --images 200 --rounds 1
    """
    # Processes start as in the prepare stage: forked, with the libraries loaded.
    fork = multiprocessing.get_context("fork")
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as work:
        for count in (images // 10, images):
            folder = Path(work) / f"images{count}"
            write_images(folder, count)
            runs: dict[str, list[dict[str, float]]] = {"plain loop": [], "biotune": []}
            for number in tqdm(range(rounds), desc=f"{count} images"):
                for name, call in (("plain loop", plain_loop), ("biotune", biotune)):
                    out = Path(work) / f"{name}-{count}-{number}"
                    with ProcessPoolExecutor(1, mp_context=fork) as own_process:
                        future = own_process.submit(measured, call, folder, out, image_size)
                        runs[name].append(future.result())
            for name, each in runs.items():
                median = {key: float(np.median([run[key] for run in each])) for key in each[0]}
                rate = count / median["seconds"]
                rows.append({"images": count, "way": name, "images a second": rate, **median})
    click.echo(f"Machine: {one_line(describe_machine())}\n")
    cells = [[f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    click.echo(markdown_table(list(rows[0]), cells))
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
