"""Pretrained networks and their ordered blocks.

A :class:`Backbone` is the network as its own library built it (so that its saved weights load there
too) with its tensors sorted into blocks, in forward order, the classifier head last. The block
partitions are those of the paper where it has the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from biotune.finetuning.architectures import Architecture, Channels, SideHead, architecture, meta
from biotune.finetuning.batchnorm import replace_batchnorms
from biotune.finetuning.convolutions import is_replaceable, replace_convolutions
from biotune.finetuning.partition import Block, divide
from biotune.finetuning.weights import WeightsError, file_identity, read_state_dict


class SideBranch(nn.Module):
    """Hands its input on, and while its classifier is trained also classifies it.

    Attributes:
        classifier: in training mode exactly while its block is trained.
        logits: of the last batch; None in evaluation.
    """

    def __init__(self, classifier: nn.Module, loss_weight: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.loss_weight = loss_weight
        self.logits: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.logits = self.classifier(features) if self.classifier.training else None
        return features


@dataclass(frozen=True)
class Backbone:
    """A network with its blocks.

    Attributes:
        name: what ``model.backbone`` in ``params.yaml`` calls it.
        classes: how many the head tells apart.
        network: maps float images [N, 3, S, S], normalised, to logits [N, classes].
        blocks: name → block in forward order. Every tensor belongs to exactly one.
        layers: running all of them in turn is the same as calling ``network``.
        new: names of the tensors that depend on the classes, and so have no pretrained values.
        mean: per channel, of pixels in [0, 1], as the pretrained weights expect them.
        std: likewise.
        side: among the layers, or None; see :class:`SideBranch`.
    """

    name: str
    classes: int
    network: nn.Module
    blocks: Mapping[str, Block]
    layers: tuple[nn.Module, ...]
    new: frozenset[str]
    mean: Channels
    std: Channels
    side: SideBranch | None = None

    @property
    def head(self) -> str:
        """Name of the classifier head's block, the last."""
        return list(self.blocks)[-1]

    def forward_from(self, block: int, features: Tensor) -> Tensor:
        """Run from the block with this index on.

        Args:
            block: 0 takes normalised images; the number of blocks returns ``features`` as they are.
            features: what the layers before that block returned, [N, …].
        """
        blocks = list(self.blocks.values())
        begin = blocks[block].first_layer if block < len(blocks) else len(self.layers)
        return self.run_layers(begin, len(self.layers), features)

    def run_layers(self, begin: int, end: int, features: Tensor) -> Tensor:
        """Run the layers from ``begin`` up to, not including, ``end``."""
        for layer in self.layers[begin:end]:
            features = layer(features)
        return features

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Mean cross-entropy of a batch that was just run; with a trained side head's, weighted.

        Args:
            logits: [n, classes].
            targets: class indices [n].
            weight: of each class, [classes]; None for 1.
            label_smoothing: share of the target that goes to all classes alike.
        """
        criterion = partial(cross_entropy, weight=weight, label_smoothing=label_smoothing)
        loss = criterion(logits, targets)
        if self.side is not None and self.side.logits is not None:
            loss = loss + self.side.loss_weight * criterion(self.side.logits, targets)
        return loss

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def parameters_of(self, block: str) -> Iterator[nn.Parameter]:
        """The parameters of one block."""
        named = self._parameters
        yield from (named[name] for name in self.blocks[block].tensors if name in named)

    def to(self, device: str) -> None:
        """Move the network, in place; layers may hold constants that the network does not know."""
        self.network.to(device)
        for layer in self.layers:
            layer.to(device)

    def check_image_size(self, size: int) -> None:
        """Run two images forward in training mode, with every block trained; nothing is changed.

        Args:
            size: of the images, in pixels.

        Raises:
            ValueError: if the network cannot be trained on such images.
        """
        before = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        features = torch.zeros(2, 3, size, size).to(memory_format=torch.channels_last)
        try:
            self.network.train()
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                for layer in self.layers:
                    features = layer(features)
                    if not isinstance(features, Tensor):
                        raise ValueError(
                            f"model.backbone: {self.name} cannot be used: a block of it hands on "
                            "more than one tensor"
                        )
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{self.name} cannot be trained on images of {size} pixels ({reason}); choose "
                "another prepare.image_size"
            ) from error
        finally:
            self.network.eval()
            self.network.load_state_dict(before)

    def tensor_names(self, block: str) -> list[str]:
        """Names, as in ``network.state_dict()``, of one block's parameters and buffers."""
        return list(self.blocks[block].tensors)

    def reset_head(self, seed: int) -> None:
        """Initialise what depends on the classes as torch does by default, from this seed alone."""
        paths = dict.fromkeys(name.rpartition(".")[0] for name in sorted(self.new))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for path in paths:
                self.network.get_submodule(path).reset_parameters()  # type: ignore[operator]


def build_backbone(name: str, weights: str, classes: int, *, for_cpu: bool = False) -> Backbone:
    """Build a network in evaluation mode, channels_last, with a new head for this many classes.

    Args:
        name: see :func:`~biotune.finetuning.architectures.architecture`.
        weights: ``imagenet`` (the best that are known), the name of one of the network's own,
            ``none`` (random, but the same each time), or the path of a state dict. What depends on
            the classes is left out.
        classes: number of classes, at least 2.
        for_cpu: with layers of ours in the place of those whose training is slow on a CPU; see
            :mod:`biotune.finetuning.convolutions` and :mod:`biotune.finetuning.batchnorm`. Names
            and values of all tensors are the same.

    Raises:
        ValueError: for an unknown name or fewer than two classes.
        WeightsError: if the weights cannot be had, or do not fit.
    """
    kind = architecture(name)
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind.build(classes)
    if for_cpu:
        replace_convolutions(network)
        replace_batchnorms(network)
    new = _new_tensors(kind)
    state = _pretrained(kind, weights)
    if state is not None:
        source = f"{name}'s {weights} weights" if weights in kind.weights else weights
        _load_all_but(new, network, state, name, source)
    network.to(memory_format=torch.channels_last)
    network.eval()
    blocks, layers = divide(network, _block_of(kind, network), list(kind.blocks))
    side = None
    if kind.side_head is not None:
        blocks, layers, side = _with_side_branch(network, kind.side_head, blocks, layers)
    mean, std = kind.normalisation(weights)
    return Backbone(name, classes, network, blocks, layers, new, mean, std, side)


def block_sizes(name: str, classes: int) -> dict[str, int]:
    """A network's blocks in forward order, the head last, with their numbers of parameters.

    Raises:
        ValueError: for an unknown name.
    """
    kind = architecture(name)
    network = meta(kind.build, classes)
    block_of = _block_of(kind, network)
    sizes = dict.fromkeys(kind.blocks, 0)
    for tensor, parameter in network.named_parameters():
        sizes[block_of[tensor]] += parameter.numel()
    return sizes


def convolution_family(name: str) -> str:
    """``dense`` for a network without depthwise convolutions, ``depthwise`` for one with.

    The kinds want different precisions; see :mod:`biotune.finetuning.hardware`. If some of the
    depthwise ones are none that :mod:`biotune.finetuning.convolutions` can stand for, it is
    ``other_depthwise``.

    Raises:
        ValueError: for an unknown name.
    """
    network = meta(architecture(name).build, 2)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    depthwise = [conv for conv in convolutions if 1 < conv.groups == conv.in_channels]
    if not depthwise:
        return "dense"
    return "depthwise" if all(is_replaceable(conv) for conv in depthwise) else "other_depthwise"


def weights_identity(name: str, weights: str) -> str:
    """What the weights are, as a string that changes when they do: part of the store's key.

    Raises:
        ValueError: for an unknown backbone.
        WeightsError: if a weights file is missing.
    """
    kind = architecture(name)
    if weights == "imagenet" or weights in kind.weights:
        return kind.identity(weights)
    return "none" if weights == "none" else file_identity(Path(weights))


def _pretrained(kind: Architecture, weights: str) -> dict[str, Tensor] | None:
    if weights == "none":
        return None
    if weights == "imagenet" or weights in kind.weights:
        return kind.pretrained(weights)
    return read_state_dict(Path(weights))


def _new_tensors(kind: Architecture) -> frozenset[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    two, three = (meta(kind.build, classes).state_dict() for classes in (2, 3))
    return frozenset(name for name in two if two[name].shape != three[name].shape)


def _block_of(kind: Architecture, network: nn.Module) -> dict[str, str]:
    """Name of each tensor → name of its block."""
    block_of: dict[str, str] = {}
    for tensor in network.state_dict():
        owners = [name for name, begins in kind.blocks.items() if tensor.startswith(begins)]
        if len(owners) != 1:
            raise ValueError(
                f"{kind.name}: the tensor {tensor!r} must be in one block, it is in "
                f"{' and '.join(owners) or 'none'}"
            )
        block_of[tensor] = owners[0]
    return block_of


def _with_side_branch(
    network: nn.Module,
    head: SideHead,
    blocks: dict[str, Block],
    layers: tuple[nn.Module, ...],
) -> tuple[dict[str, Block], tuple[nn.Module, ...], SideBranch]:
    """Blocks and layers with one layer more, behind the block that the side head sees; and it."""
    branch = SideBranch(network.get_submodule(head.block), head.loss_weight)
    names = list(blocks)
    following = names[names.index(head.after) + 1 :]
    place = min(blocks[name].first_layer for name in following if name != head.block)
    moved = {
        name: replace(block, first_layer=block.first_layer + (block.first_layer >= place))
        for name, block in blocks.items()
    }
    moved[head.block] = replace(blocks[head.block], first_layer=place)
    return moved, (*layers[:place], branch, *layers[place:]), branch


def _load_all_but(
    new: frozenset[str], network: nn.Module, state: dict[str, Tensor], name: str, source: str
) -> None:
    initial = network.state_dict()
    state = {_modern_name(tensor): value for tensor, value in state.items()}
    # BatchNorm's counters decide nothing, and files from before torch 0.4.1 have none.
    counters = {tensor for tensor in initial if tensor.endswith("num_batches_tracked")}
    needed = [tensor for tensor in initial if tensor not in new | (counters - state.keys())]
    missing = [tensor for tensor in needed if tensor not in state]
    misfit = [n for n in needed if n in state and state[n].shape != initial[n].shape]
    if missing or misfit:
        raise WeightsError(
            f"model.weights: {source} does not fit {name}: {len(missing)} tensors are missing and "
            f"{len(misfit)} have another shape, {(missing + misfit)[0]!r} first. Give the weights "
            f"of a {name}."
        )
    network.load_state_dict({**initial, **{tensor: state[tensor] for tensor in needed}})


def _modern_name(tensor: str) -> str:
    """torchvision's DenseNet files, and all that were trained from them, have ``norm.1``."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", tensor)
