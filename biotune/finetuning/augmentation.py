"""Random changes of training images, by torchvision's transforms on tensors.

The draws come from torch's global stream, which a run seeds for itself; see
:func:`biotune.finetuning.training.fit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Augmentation = Literal["none", "flip", "randaugment", "trivialaugment"]
AUGMENTATIONS: Final[tuple[Augmentation, ...]] = get_args(Augmentation)
"""``flip``: left and right exchanged, for half of the images. ``randaugment`` (arXiv 1909.13719)
and ``trivialaugment`` (wide; arXiv 2103.10158): the same, and then torchvision's of that name."""


def augmenter(name: Augmentation) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    """The function that changes images at random, each by itself; None for ``none``.

    It takes and returns uint8 ``[n, S, S, 3]``.
    """
    if name == "none":
        return None
    from torchvision.transforms import v2

    changes: dict[str, list[torch.nn.Module]] = {
        "flip": [],
        "randaugment": [v2.RandAugment()],
        "trivialaugment": [v2.TrivialAugmentWide()],
    }
    transform = v2.Compose([v2.RandomHorizontalFlip(), *changes[name]])

    def augment(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        changed = torch.stack([transform(image) for image in batch])
        return changed.permute(0, 2, 3, 1).contiguous().numpy()

    return augment
