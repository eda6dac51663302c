"""Write a classifier as one ONNX graph: raw pixels in, probabilities out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from biotune.data.transforms import normalise, resize
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.checkpoints import ModelCard

OPSET = 20
"""ONNX Runtime has it since 1.17."""

IR_VERSION = 10
"""The version of the file's format, which ONNX Runtime has since 1.18."""

FORMAT = "biotune-classifier/1"
"""Of the graph's input, output and metadata; raised when a reader must know of a change."""


class Classifier(nn.Module):
    """The network with everything that surrounded it in training: resize, normalise, softmax.

    Args:
        backbone: fine-tuned; put in evaluation mode and on the CPU.
        image_size: that it was trained at, in pixels.
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.network = backbone.network.cpu().eval()
        for module in self.network.modules():
            if getattr(module, "inplace", False):  # of no use here, and a fifth of its time
                module.inplace = False  # type: ignore[assignment]  # a flag, no buffer
        self._mean, self._std = backbone.mean, backbone.std
        self._size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """Class probabilities.

        Args:
            image: uint8 [batch, height, width, 3], any height and width.

        Returns:
            float32 [batch, classes], rows sum to 1.
        """
        pixels = normalise(resize(image, self._size), self._mean, self._std)
        logits: Tensor = self.network(pixels)
        return logits.softmax(dim=1)


def export_onnx(
    backbone: Backbone,
    card: ModelCard,
    path: Path,
    *,
    background: str = "white",
    described: Mapping[str, Any] | None = None,
) -> None:
    """Write ``path``: input ``image``, output ``probabilities``, all its weights inside.

    Its metadata holds, as JSON: ``classes`` (in the order of the outputs), ``plan``,
    ``image_size``, ``input`` (how pixels are made of a file, and what becomes of them), whatever is
    in ``described``; and as text ``backbone``, ``name`` (the plan's) and ``format``.

    Args:
        backbone: fine-tuned.
        card: what it is.
        path: to write; overwritten.
        background: what showed through transparent pixels in training.
        described: more entries, JSON values, such as the metrics on the test split.
    """
    classifier = Classifier(backbone, card.image_size).eval()
    # A batch of two: the exporter may take a batch of one for a constant (pytorch #157621).
    example = torch.zeros(2, card.image_size + 8, card.image_size + 16, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, not the user's concern
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            dynamic_shapes={"image": {0: "batch", 1: "height", 2: "width"}},
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    _strip_debug_metadata(model)
    model.ir_version = IR_VERSION
    entries: dict[str, Any] = {
        "classes": list(card.classes),
        "plan": dict(card.plan),
        "image_size": card.image_size,
        "input": _input_recipe(card, background),
        **(described or {}),
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in entries.items()}
    texts |= {"backbone": card.backbone, "name": card.name, "format": FORMAT}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def _input_recipe(card: ModelCard, background: str) -> dict[str, Any]:
    """From an image file to what the network sees; all but the first line is in the graph."""
    return {
        "decode": "8-bit RGB, the camera's rotation applied, the first frame",
        "background": background,
        "resize": f"antialiased bilinear to {card.image_size} x {card.image_size}, stretched, "
        "rounded to whole levels",
        "crop": None,
        "mean": list(card.mean),
        "std": list(card.std),
    }


def _strip_debug_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes in most nodes: this machine's paths, and stack traces."""
    graphs: Iterable[onnx.GraphProto | onnx.FunctionProto] = (model.graph, *model.functions)
    for graph in graphs:
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in graph.value_info:
            del value.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
