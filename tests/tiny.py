"""A pipeline that takes seconds a stage: a toy network, few small images, epochs and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.imports import ROOT

NETWORK = "timm/test_efficientnet"
"""Inverted residuals, BatchNorm and depthwise convolutions like the default's; 100,000 parameters.

From random weights it gets three of four digits right after four epochs, so that its answers
depend on the images, and a test of them can fail.
"""

BLOCKS = ("stem", *(f"blocks.{i}.0" for i in range(5)), "classifier")


PICTURES = {"prepare__source": "image_folder"}
"""Changes for images that :func:`write_pictures` puts into ``data``, the default path."""


def tiny_params(**changes: Any) -> dict[str, Any]:
    """The default params, made tiny; ``section__key=value`` changes more."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {"image_size": 32, "train_images": 40, "validation_images": 40}
    content["model"] |= {"backbone": NETWORK, "weights": "none"}
    content["search"] |= {"population": 2, "generations": 1, "elites": 1, "epochs": 2}
    content["search"] |= {"batch_size": 8, "base_lr": 0.003, "confirm_top_k": 1}
    content["finetune"] |= {"epochs": 4, "batch_size": 8, "base_lr": 0.003, "training_seeds": [0]}
    content["runtime"] |= {"workers": 1}  # tests run side by side: each has one core
    for name, value in changes.items():
        section, key = name.split("__")
        content[section][key] = value
    return content


def write_tiny_params(path: Path, **changes: Any) -> Path:
    """Write them as a params file; its path."""
    path.write_text(yaml.safe_dump(tiny_params(**changes), sort_keys=False), encoding="utf-8")
    return path


def write_pictures(folder: Path, images: int = 160) -> Path:
    """The first digits of scikit-learn as PNG files of 8 x 8 pixels, a folder for each class.

    With 40 to train on and 40 to validate on, half of 160 are left for the test.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images[:images] * 255 / 16).round().astype(np.uint8)
    for number, (pixels, label) in enumerate(zip(grey, digits.target, strict=False)):
        file = folder / str(label) / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder
