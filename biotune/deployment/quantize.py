"""Smaller and faster forms of an exported classifier: 8-bit integers, 16-bit floats.

Both leave everything before the first layer with weights as it is, so that the very pixels that the
network was trained on reach it. Whether the result is still good enough is for measurement to say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

_WITH_WEIGHTS: Final = ("Conv", "Gemm", "MatMul")

_QUANTIZED: Final = (
    *_WITH_WEIGHTS,
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
)
"""With Clip and Relu, a convolution's output is quantized after its activation, over the range
that is used; docs/performance.md says what that gains."""


def quantize_int8(model: Path, out: Path, batches: Iterable[NDArray[np.uint8]]) -> None:
    """Static quantization, per channel, in the QDQ format: weights int8, activations uint8.

    Weights, and other constants, use 7 of the 8 bits. x86 processors without VNNI add two products
    in 16 bits, which all 8 overflow (https://github.com/microsoft/onnxruntime/pull/12088): a model
    that lost nothing where it was made would lose accuracy where it is used. EfficientNet-Lite0 on
    the digits lost 3.7 points of validation accuracy on a Zen 3 with 8 bits, and 0.7 with 7.
    ONNX Runtime's ``session.x64quantprecision`` would help programs that set it, and no others.

    The first layer with weights stays in floats: with three input channels it is slower in integers
    and costs accuracy.

    Args:
        model: as :func:`biotune.deployment.export.export_onnx` wrote it.
        out: to write; its metadata is the model's without ``metrics``, and ``precision: int8``.
        batches: images to calibrate the activations' ranges by, uint8 [b, S, S, 3], all of one
            shape; training images.

    Raises:
        ValueError: without a batch.
    """
    with TemporaryDirectory() as scratch, _quiet():
        folded = Path(scratch, "folded.onnx")
        quant_pre_process(model, folded, skip_symbolic_shape=True)
        before, first = _before_the_network(onnx.load(folded).graph)
        quantize_static(
            folded,
            out,
            _Calibration(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=[*before, first],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    _finish(onnx.load(out), onnx.load(model), out, "int8")


def convert_fp16(model: Path, out: Path) -> None:
    """Weights and computation in 16-bit floats; the types of input and output as before.

    For GPUs: ONNX Runtime's CPU provider mostly converts back.

    Args:
        model: as :func:`biotune.deployment.export.export_onnx` wrote it.
        out: to write; its metadata is the model's without ``metrics``, and ``precision: fp16``.
    """
    original = onnx.load(model)
    before, _ = _before_the_network(original.graph)
    converted = convert_float_to_float16(
        onnx.load(model), keep_io_types=True, node_block_list=before
    )
    # It puts casts in anywhere, and leaves the types of what it has changed as they were.
    del converted.graph.value_info[:]
    ordered = OnnxModel(converted)
    ordered.topological_sort()
    _finish(ordered.model, original, out, "fp16")


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch as ONNX Runtime takes it."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _before_the_network(graph: onnx.GraphProto) -> tuple[list[str], str]:
    """Names of the nodes before the first layer with weights, and of that one."""
    names = [node.name for node in graph.node]
    for index, node in enumerate(graph.node):
        if node.op_type in _WITH_WEIGHTS:
            return names[:index], names[index]
    raise ValueError(f"the graph has no layer with weights ({', '.join(_WITH_WEIGHTS)})")


def _finish(model: onnx.ModelProto, original: onnx.ModelProto, out: Path, precision: str) -> None:
    entries = {entry.key: entry.value for entry in original.metadata_props}
    entries.pop("metrics", None)  # they were measured on the original
    onnx.helper.set_model_props(model, {**entries, "precision": precision})
    model.ir_version = original.ir_version
    model.producer_name, model.producer_version = (
        original.producer_name,
        original.producer_version,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's tools, which advise what is done already, by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
