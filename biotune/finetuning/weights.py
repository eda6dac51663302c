"""Where pretrained weights come from: a package, torchvision's download, or a user's file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


class WeightsError(ValueError):
    """Pretrained weights could not be found, read or fitted to the network."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file, or a ``torch.save`` file of tensors alone.

    Nothing in the file is ever executed (``weights_only=True``).

    Raises:
        WeightsError: if there is no such file, or it holds anything but named tensors of numbers.
    """
    _check_exists(path)
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any other file may be any pickle, and fail in any way
        # Not torch's own words: they advise to load the file without weights_only.
        raise _not_a_state_dict(path, f"reading it gave a {type(error).__name__}") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise _not_a_state_dict(path, f"it holds a {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(
                f"model.weights: {path}: {name} holds values that are no numbers or infinite, as a "
                "training that diverged leaves them. Take an earlier checkpoint."
            )
    return dict(loaded)


def file_identity(path: Path) -> str:
    """SHA-256 of a weights file, in hex.

    Raises:
        WeightsError: if there is no such file.
    """
    _check_exists(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torchvision_state_dict(weights: WeightsEnum) -> dict[str, Tensor]:
    """Download torchvision's weights, or read them from its cache.

    Raises:
        WeightsError: without a connection, or with a damaged file in the cache, saying how to
            fetch the file by hand.
    """
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except Exception as error:  # as above: a file in the cache may be anything
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"could not download or read {weights} ({error}). Fetch {weights.url} on another "
            f"machine and put it into {cache}, or name the file as model.weights."
        ) from error


def timm_state_dict(name: str) -> dict[str, Tensor]:
    """Download timm's weights, or read them from its cache.

    Raises:
        WeightsError: without a connection, or for a model without weights.
    """
    import timm

    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # a download may fail in any way
        config = timm.get_pretrained_cfg(name)
        source = (config.hf_hub_id or config.url) if config is not None else None
        raise WeightsError(
            f"could not download or read the weights of timm/{name} ({error}). "
            + (
                f"Fetch them from {source} on another machine and name the file as model.weights."
                if source
                else "It has none: give model.weights: none, or a file."
            )
        ) from error


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(
            f"model.weights: there is no file {str(path)!r}. Give 'imagenet', 'none', or the path "
            "of a state dict (.safetensors, or saved by torch.save)."
        )


def _not_a_state_dict(path: Path, why: str) -> WeightsError:
    return WeightsError(
        f"model.weights: {path} is not a state dict of plain tensors ({why}). Save it as "
        "safetensors, or with torch.save(model.state_dict(), path)."
    )
