"""A pipeline that takes seconds a stage: few, small images, one epoch, two plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.imports import ROOT


def tiny_params(**changes: Any) -> dict[str, Any]:
    """The default params, made tiny; ``section__key=value`` changes more."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {"image_size": 32, "train_images": 40, "validation_images": 40}
    content["search"] |= {"population": 2, "generations": 1, "elites": 1, "epochs": 1}
    content["search"] |= {"batch_size": 16, "confirm_top_k": 1}
    content["finetune"] |= {"epochs": 2, "batch_size": 16, "training_seeds": [0]}
    for name, value in changes.items():
        section, key = name.split("__")
        content[section][key] = value
    return content


def write_tiny_params(path: Path, **changes: Any) -> Path:
    """Write them as a params file; its path."""
    path.write_text(yaml.safe_dump(tiny_params(**changes), sort_keys=False), encoding="utf-8")
    return path
