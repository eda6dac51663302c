"""A fine-tuned classifier on disk: its tensors, and all that is needed to rebuild it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from biotune.data.prepared import PreparedImages
from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.plan import FineTunePlan


@dataclass(frozen=True)
class ModelCard:
    """What ``model.json`` says.

    Attributes:
        backbone: name of the network.
        classes: class names in the order of the outputs.
        plan: what it was trained by.
        name: what the plan is called: a candidate of the search, or a known recipe.
        image_size: height and width of the input in pixels.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        validation_score: at the kept epoch, by `finetune.metric`, in [0, 1].
        precision: that it was trained in, such as ``fp32`` or ``bf16``.
    """

    backbone: str
    classes: tuple[str, ...]
    plan: FineTunePlan
    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    validation_score: float
    precision: str

    def to_json(self) -> dict[str, Any]:
        """The card as JSON values."""
        return {**vars(self), "plan": dict(self.plan)}

    @classmethod
    def from_json(cls, card: dict[str, Any]) -> ModelCard:
        """Read what :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        if not isinstance(card["backbone"], str):
            raise TypeError(f"its backbone is {card['backbone']!r}")
        return cls(
            backbone=card["backbone"],
            classes=tuple(card["classes"]),
            plan=FineTunePlan(dict(card["plan"])),
            name=card["name"],
            image_size=card["image_size"],
            mean=_channels(card["mean"]),
            std=_channels(card["std"]),
            validation_score=card["validation_score"],
            precision=card["precision"],
        )


def seed_file(folder: Path, role: str, seed: int) -> Path:
    """Where the weights of one final run are kept.

    Args:
        folder: of all of them.
        role: ``winner``, or ``best_recipe`` if that is another plan.
        seed: its training seed.
    """
    return folder / f"{role}-{seed}.safetensors"


def load_model(weights: Path) -> tuple[Backbone, ModelCard]:
    """Rebuild a fine-tuned network, in evaluation mode.

    Args:
        weights: a ``.safetensors`` file; the card is the ``.json`` file beside it.

    Raises:
        FileNotFoundError: if one of the two is missing.
        ValueError: if they are damaged, or do not fit each other.
    """
    path = weights.with_suffix(".json")
    for file in (weights, path):
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; run the finetune stage first")
    try:
        card = ModelCard.from_json(json.loads(path.read_text(encoding="utf-8")))
        backbone = build_backbone(card.backbone, "none", len(card.classes))
        _check_card(card, backbone)
        backbone.network.load_state_dict(load_file(weights))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{weights} and {path} are no model of this version ({error}); run the finetune stage "
            "again"
        ) from error
    # Which are those of the weights that it was fine-tuned from.
    return replace(backbone, mean=card.mean, std=card.std), card


def load_model_of(weights: Path, images: PreparedImages) -> tuple[Backbone, ModelCard]:
    """Rebuild a fine-tuned network, if it was trained on images prepared like these.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`; and for other classes, another order
            of them, or another size.
    """
    backbone, card = load_model(weights)
    if card.classes != images.classes or card.image_size != images.image_size:
        raise ValueError(
            f"{weights} was trained on other images than those prepared (classes "
            f"{list(card.classes)} at {card.image_size} px, prepared {list(images.classes)} at "
            f"{images.image_size} px); run the search and finetune stages again"
        )
    return backbone, card


def _check_card(card: ModelCard, backbone: Backbone) -> None:
    if tuple(card.plan) != tuple(backbone.blocks):
        raise ValueError(f"its plan is of the blocks {list(card.plan)}")
    if not isinstance(card.image_size, int) or card.image_size < 1:
        raise ValueError(f"its image_size is {card.image_size!r}")


def _channels(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
