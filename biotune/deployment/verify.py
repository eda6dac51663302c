"""Whether an exported classifier says what the network said that it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from biotune.data.transforms import resize


@dataclass(frozen=True)
class Agreement:
    """How two classifiers' probabilities for the same images compare.

    Attributes:
        label_agreement: share of images with the same most probable class, in [0, 1].
        largest_difference: between two probabilities, anywhere, in [0, 1].
    """

    label_agreement: float
    largest_difference: float


def compare(first: NDArray[np.float32], second: NDArray[np.float32]) -> Agreement:
    """Compare probabilities [n, classes] with others of the same images.

    Raises:
        ValueError: for different shapes, or no images.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"expected probabilities of equal shape, got {first.shape}, {second.shape}"
        )
    same = first.argmax(axis=1) == second.argmax(axis=1)
    return Agreement(float(same.mean()), float(np.abs(first - second).max()))


def onnx_probabilities(
    model: Path, images: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Run an exported model on the CPU, batch by batch.

    Args:
        model: the ``.onnx`` file.
        images: uint8 [N, S, S, 3].
        indices: which of them, [n].
        batch_size: images per call, at least 1.

    Yields:
        float32 [b, classes] for every batch, in the order of ``indices``.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for begin in range(0, len(indices), batch_size):
        batch = np.ascontiguousarray(images[indices[begin : begin + batch_size]])
        (probabilities,) = session.run(["probabilities"], {"image": batch})
        yield probabilities


def resized_by_torch(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """What the prepare stage makes of images: uint8 [n, size, size, 3].

    Args:
        images: uint8 [n, H, W, 3].
        size: in pixels.
    """
    resized = [resize(torch.from_numpy(one[None]), size) for one in images]  # memory for one
    return torch.cat(resized).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
