"""A model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import shutil
from pathlib import Path

LARGEST_BATCH = 32

_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {largest_batch}
input [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: [ -1, -1, 3 ]
  }}
]
output [
  {{
    name: "probabilities"
    data_type: TYPE_FP32
    dims: [ {classes} ]
    label_filename: "labels.txt"
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: 2000
}}
"""


def write_triton_repository(
    folder: Path, model: Path, classes: tuple[str, ...], name: str = "biotune"
) -> None:
    """Write ``folder/name/`` with ``config.pbtxt``, ``labels.txt`` and ``1/model.onnx``.

    Triton then batches requests of one image size by itself; the model resizes, so that clients
    need not. It is a copy of the model, because object stores have no links.

    Args:
        folder: to write; ``tritonserver --model-repository`` takes it.
        model: the exported model.
        classes: in the order of the outputs.
        name: of the model in Triton.
    """
    repository = folder / name
    (repository / "1").mkdir(parents=True)
    shutil.copyfile(model, repository / "1" / "model.onnx")
    labels = "".join(f"{' '.join(label.splitlines())}\n" for label in classes)
    (repository / "labels.txt").write_text(labels, encoding="utf-8")
    config = _CONFIG.format(name=name, classes=len(classes), largest_batch=LARGEST_BATCH)
    (repository / "config.pbtxt").write_text(config, encoding="utf-8")
