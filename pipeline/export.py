"""The export stage: the winner as one ONNX file, compared with torch on every test image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from biotune.data.prepared import PreparedImages
from biotune.deployment.export import export_onnx
from biotune.deployment.verify import Agreement, compare, onnx_probabilities, resized_by_torch
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.checkpoints import load_model_of
from biotune.finetuning.training import ImageSubset, predict_probabilities
from pipeline.console import percent, print_table
from pipeline.errors import PipelineError
from pipeline.home import biotune_home
from pipeline.outputs import check_writable, write_json, written_beside
from pipeline.params import Params
from pipeline.tracking import tracked_stage

BATCH_SIZES = (1, 32)
"""One image at a time, as a service would ask, and many, as a batch job would."""

RAW_IMAGES = 8
"""Test images that are made as large as the originals were, for the graph to resize."""


@dataclass(frozen=True)
class ExportFiles:
    """Where the export stage writes."""

    onnx: Path
    labels: Path
    verification: Path


class ExportMismatchError(PipelineError):
    """The exported model does not say what the network says; no model is written."""


def run(params: Params, *, prepared: Path, model: Path, files: ExportFiles) -> dict[str, Any]:
    """Export the fine-tuned model, and prove on the whole test split that it is the same.

    Args:
        params: the sections ``export`` and ``tracking`` are used.
        prepared: folder that the prepare stage wrote.
        model: the ``.safetensors`` of the finetune stage; its ``.json`` is beside it.
        files: to write; the ONNX file only if it passes.

    Returns:
        What ``verification.json`` says.

    Raises:
        ValueError, OSError: for inputs that cannot be used.
        ExportMismatchError: below ``export.min_label_agreement``.
    """
    images = PreparedImages.open(prepared)
    images.check_files()
    backbone, card = load_model_of(model, images)
    check_writable(files.onnx, files.labels, files.verification)
    test = ImageSubset(images.images, images.labels, images.indices("test"))
    required = params.export.min_label_agreement
    with tracked_stage("export", params, images.fingerprint, biotune_home()) as tracked:
        reference = predict_probabilities(backbone, test)
        with written_beside(files.onnx) as beside:
            export_onnx(backbone, card, beside)
            agreements: dict[str, Agreement] = {}
            for size in BATCH_SIZES:
                batches = onnx_probabilities(beside, images.images, test.indices, size)
                steps = -(-len(test) // size)
                shown = tqdm(batches, total=steps, desc=f"verify, batches of {size}", unit="batch")
                agreements[f"batch_{size}"] = compare(np.concatenate(list(shown)), reference)
            worst = min(one.label_agreement for one in agreements.values())
            # Of too few images to decide by; it says whether the graph resizes alike.
            agreements |= dict(_of_original_sizes(beside, backbone, images, test.indices))
            figures = {name: asdict(one) for name, one in agreements.items()}
            verification = {
                "test_images": len(test),
                "min_label_agreement": required,
                **figures,
            }
            write_json(files.verification, verification)
            if worst < required:
                raise ExportMismatchError(
                    f"ONNX Runtime and torch agree on {percent(worst, 2)} of the test labels, "
                    f"export.min_label_agreement asks for {percent(required, 2)}; the figures are "
                    f"in {files.verification}, and no model was written"
                )
        write_json(files.labels, {"classes": list(card.classes)})
        tracked.metrics(figures)
        tracked.artifacts([files.onnx, files.labels, files.verification])
    rows = [
        (name.replace("_", " "), percent(one.label_agreement, 2), f"{one.largest_difference:.1e}")
        for name, one in agreements.items()
    ]
    title = f"{files.onnx} against torch, {len(test)} test images"
    print_table(title, ["", "same label", "largest difference in probability"], rows)
    return verification


def _of_original_sizes(
    model: Path, backbone: Backbone, images: PreparedImages, test: NDArray[np.int64]
) -> Iterator[tuple[str, Agreement]]:
    """Whether the graph resizes as the prepare stage does, from the sizes that images came in."""
    one_row = np.zeros(1, dtype=np.int64)
    for size in sorted(set(images.original_sizes.values())):
        own, reference = [], []
        for index in test[:RAW_IMAGES]:  # one at a time: the largest may be large
            raw = np.array(Image.fromarray(images.images[index]).resize(size))[np.newaxis]
            own += list(onnx_probabilities(model, raw, one_row, 1))
            prepared = resized_by_torch(raw, images.image_size)
            subset = ImageSubset(prepared, one_row, one_row)
            reference.append(predict_probabilities(backbone, subset))
        width, height = size
        yield f"raw_{width}x{height}", compare(np.concatenate(own), np.concatenate(reference))
