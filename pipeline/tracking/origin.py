"""What a model came from that is no function of its inputs: commit, machine, tracking run."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from pipeline.home import IMAGE_VARIABLE

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.tracking.stage_run import StageRun

IMAGE_TAG: Final = "biotune.image"
"""Tag of a run in MLflow: the same."""

_PACKAGES: Final = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "mlflow", "dvc")


def origin_tags() -> dict[str, str]:
    """Commit, whether the checkout had changes, and image, as far as they are known."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    tags = {}
    if commit:
        tags["mlflow.source.git.commit"] = commit
        if changes is not None:  # git may know the commit, and not be able to look at the files
            tags["biotune.uncommitted_changes"] = str(bool(changes)).lower()
    if os.environ.get(IMAGE_VARIABLE):
        tags[IMAGE_TAG] = os.environ[IMAGE_VARIABLE]
    return tags


def lineage(
    described: Mapping[str, Any], model: Mapping[str, Any], params: Params, tracked: StageRun
) -> dict[str, Any]:
    """What ``lineage.json`` says.

    Args:
        described: hashes of the inputs, as the model holds them.
        model: size and SHA-256 of the model's file.
        params: their names in MLflow are used.
        tracked: the export stage's run.
    """
    tags = origin_tags()
    return {
        "model": dict(model),
        "commit": tags.get("mlflow.source.git.commit"),
        "uncommitted_changes": tags.get("biotune.uncommitted_changes"),
        "image": tags.get(IMAGE_TAG),
        "hashes": described["hashes"],
        "mlflow": {
            "experiment": params.tracking.experiment,
            "registered_model": params.tracking.registered_model,
            "run_tag": {"biotune.key": tracked.key},
        },
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _git(*words: str) -> str | None:
    """What git says; None if it fails."""
    try:
        asked = subprocess.run(["git", *words], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None
