"""What ``biotune backbones`` shows: which networks there are, and the blocks of one."""

from __future__ import annotations

from biotune.finetuning.architectures import architecture, torchvision_names
from biotune.finetuning.backbones import block_sizes, convolution_family
from pipeline.reporting.console import percent, print_table

OF_THE_PAPER = ("resnet50", "densenet121", "vgg19", "inception_v3")
CLASSES = 10
"""Of the head that is shown; any number would do."""


def list_backbones() -> None:
    """Print what ``model.backbone`` may be."""
    others = [name for name in torchvision_names() if name not in OF_THE_PAPER]
    print("The embedded default: efficientnet_lite0")
    print(f"Of the paper: {', '.join(OF_THE_PAPER)}")
    print(f"Others of torchvision: {', '.join(others)}")
    print("Of timm: timm/NAME, such as timm/convnext_atto; timm.list_models() lists them")


def show_backbone(name: str) -> None:
    """Print a network's blocks, what they weigh, and its weights.

    Raises:
        ValueError: for an unknown name.
    """
    kind = architecture(name)
    sizes = block_sizes(name, CLASSES)
    total = sum(sizes.values())
    rows = [
        (
            block,
            f"{size:,}",
            percent(size / total),
            " ".join(f"{prefix}*" for prefix in kind.blocks[block]),
        )
        for block, size in sizes.items()
    ]
    title = f"{name}, with a head for {CLASSES} classes"
    print_table(title, ["block", "parameters", "share", "tensors"], rows)
    weights = ", ".join(["imagenet", *(key for key in kind.weights if key != "imagenet")])
    print(f"model.weights: {weights}, none, or the path of a state dict")
    print(f"Convolutions: {convolution_family(name)}")
