"""How much each class counts in the loss."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotune.finetuning.choices import ClassWeights

EFFECTIVE_NUMBER_BETA: Final = 0.999
"""β of Cui et al. 2019 (arXiv 1901.05555), the middle of their three. 1 − βⁿ is all but 1 from some
thousands of images a class on: further ones say little that is new."""


def class_weights(kind: ClassWeights, labels: NDArray[np.int64], classes: int) -> Tensor | None:
    """Weight of each class in the cross-entropy, float32 [classes], 1 on average; None for none.

    ``balanced`` weighs a class by 1 / n, ``effective_number`` by (1 − β) / (1 − βⁿ), n being the
    number of its training images.

    Args:
        kind: which.
        labels: of the training images, class indices [n].
        classes: how many there are. One without training images gets weight 0.
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    effective = counts
    if kind == "effective_number":
        effective = (1 - EFFECTIVE_NUMBER_BETA**counts) / (1 - EFFECTIVE_NUMBER_BETA)
    weights = np.divide(1, effective, out=np.zeros_like(effective), where=counts > 0)
    return torch.from_numpy(weights * classes / weights.sum()).float()
