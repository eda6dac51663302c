"""Random changes of training images, by torchvision's transforms on tensors.

The draws come from a stream of their own: which images a plan sees does not depend on what else
draws numbers, such as the dropout of the blocks that it trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from biotune.finetuning.choices import Augmentation


class Augmenter:
    """Changes images at random, each by itself.

    Its n-th call draws the same numbers for the same seed, whatever was drawn elsewhere.

    Args:
        changes: what is done to each image.
        seed: of its own stream.

    Attributes:
        state: of the stream; set it to go on from there.
    """

    def __init__(self, changes: Sequence[torch.nn.Module], seed: int) -> None:
        from torchvision.transforms import v2

        self._transform = v2.Compose(list(changes))
        self.state = torch.Generator().manual_seed(seed).get_state()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Changed copies of images, uint8 ``[n, S, S, 3]``."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global stream
            torch.set_rng_state(self.state)
            changed = torch.stack([self._transform(image) for image in batch])
            self.state = torch.get_rng_state()
        result: NDArray[np.uint8] = changed.permute(0, 2, 3, 1).contiguous().numpy()
        return result


def augmenter(name: Augmentation, seed: int) -> Augmenter | None:
    """What changes the images as named; None for ``none``."""
    if name == "none":
        return None
    from torchvision.transforms import v2

    changes: dict[str, list[torch.nn.Module]] = {
        "flip": [],
        "randaugment": [v2.RandAugment()],
        "trivialaugment": [v2.TrivialAugmentWide()],
    }
    return Augmenter([v2.RandomHorizontalFlip(), *changes[name]], seed)
