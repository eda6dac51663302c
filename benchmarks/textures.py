"""Real pictures cut into patches: a data set of another kind than digits, without a download.

Sixteen photographs, micrographs and scans that scikit-image carries with it. The class is the
picture that a patch was cut from; its three splits are cut from bands of it that do not touch. The
patches are grey and of equal mean, so that colour and brightness do not give the picture away.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
    "motorcycle_left.png", "page.png", "retina.jpg", "text.png",
)  # fmt: skip

PATCH = 32
"""Side of a patch, in pixels of the picture."""

# Split → the band of the picture's width that its patches lie in, and how many are cut.
_SPLITS = {"train": (0.0, 0.38, 20), "validation": (0.4, 0.68, 20), "test": (0.7, 1.0, 60)}


def write_textures(folder: Path) -> None:
    """Write the patches as PNG files, ``folder/split/picture/number.png``."""
    rng = np.random.default_rng(0)
    for name in PICTURES:
        with Image.open(str(files("skimage").joinpath("data", name))) as image:
            picture = np.asarray(image.convert("L"), dtype=np.float64)
        height, width = picture.shape
        for split, (begin, end, count) in _SPLITS.items():
            target = folder / split / Path(name).stem
            target.mkdir(parents=True)
            for number in range(count):
                row = rng.integers(0, height - PATCH + 1)
                column = rng.integers(round(begin * width), round(end * width) - PATCH + 1)
                patch = picture[row : row + PATCH, column : column + PATCH]
                levels = np.clip(patch - patch.mean() + 128, 0, 255).round().astype(np.uint8)
                Image.fromarray(levels).save(target / f"{number:02d}.png")
