"""A network of three blocks with everything that freezing must think of, and images for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from biotune.finetuning.backbones import Backbone
from biotune.finetuning.partition import Block
from biotune.finetuning.training import ImageSubset, TrainingSettings
from biotune.plan import FineTunePlan

BLOCKS = ("stem", "middle", "head")
CLASSES = 3


class Detach(nn.Module):
    """Cuts the gradient off, as a network with a bug would."""

    def forward(self, features: Tensor) -> Tensor:
        return features.detach()


def backbone() -> Backbone:
    """Convolution and BatchNorm; the same with dropout; a linear head. Always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.Hardswish(),  # is never dead, unlike a ReLU
            nn.Conv2d(4, 6, 3),
            nn.BatchNorm2d(6),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(6, CLASSES),
        )
    network.to(memory_format=torch.channels_last).eval()
    tensors = list(network.state_dict())
    parts = {"stem": (0, 1, 2), "middle": (3, 4, 5), "head": (6, 7)}
    blocks = {
        name: Block(
            modules=tuple(network[layer] for layer in layers),
            tensors=tuple(t for t in tensors if int(t.split(".")[0]) in layers),
            # Flattening is no part of the head: what it leaves is kept.
            first_layer=7 if name == "head" else layers[0],
        )
        for name, layers in parts.items()
    }
    new = frozenset({"7.weight", "7.bias"})
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)
    return Backbone("toy", CLASSES, network, blocks, tuple(network), new, mean, std)


def plan(**multipliers: float) -> FineTunePlan:
    """Trains the blocks that are named; the others are frozen."""
    return FineTunePlan({block: multipliers.get(block) for block in BLOCKS})


def subset(count: int = 24, start: int = 0) -> ImageSubset:
    """Noise of which each class has its own brightness, 7 × 7 pixels."""
    rng = np.random.default_rng(start)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    noise = rng.integers(0, 100, (count, 7, 7, 3), dtype=np.uint8)
    images = noise + (70 * labels).astype(np.uint8)[:, None, None, None]
    return ImageSubset(images, labels, np.arange(count, dtype=np.int64))


def settings(**changes: float) -> TrainingSettings:
    """Three epochs of three steps (24 images); see :class:`TrainingSettings`."""
    values = {"epochs": 3, "patience": 3, "batch_size": 8, "base_lr": 0.01} | changes
    return TrainingSettings(**values)


def copy_of(backbone: Backbone) -> dict[str, Tensor]:
    """All of the network's tensors, as they are now."""
    return {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are the same, bit by bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
