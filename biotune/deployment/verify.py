"""Whether an exported classifier says what the network said that it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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


def prepared_by_torch(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """What the prepare stage makes of a decoded image.

    Args:
        image: uint8 [H, W, 3].
        size: in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    resized = resize(torch.from_numpy(image[np.newaxis]), size)[0]
    return resized.permute(1, 2, 0).to(torch.uint8).contiguous().numpy()
