"""Smaller forms of a model: same inputs, nearly the same answers, fewer bytes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from biotune.deployment.predictor import Predictor
from biotune.deployment.quantize import convert_fp16, quantize_int8
from biotune.deployment.verify import compare


def batches(exported):
    rows = exported.prepared.indices("train")
    for begin in range(0, 32, 16):
        yield np.ascontiguousarray(exported.prepared.images[rows[begin : begin + 16]])


@pytest.fixture(scope="module")
def int8(exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    quantize_int8(exported.path, out, batches(exported))
    return out


def answers(file, exported):
    rows = exported.prepared.indices("validation")
    return Predictor(file, device="cpu").probabilities(list(exported.prepared.images[rows]))


def test_int8_gives_nearly_the_same_answers_from_a_third_of_the_bytes(exported, int8):
    integers, expected = answers(int8, exported), answers(exported.path, exported)
    assert 0 < compare(integers, expected).largest_difference < 0.5
    assert np.abs(integers - expected).mean() < 0.03
    assert np.corrcoef(integers.ravel(), expected.ravel())[0, 1] > 0.95
    assert int8.stat().st_size < exported.path.stat().st_size / 3


def test_all_layers_but_the_first_are_integers_and_the_resize_is_untouched(exported, int8):
    graph = onnx.load(int8).graph
    from_integers = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantized = [node for node in convolutions if node.input[0] in from_integers]
    assert len(quantized) == len(convolutions) - 1
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert Counter(weights.values())[onnx.TensorProto.INT8] >= len(quantized)
    (resize,) = [node for node in graph.node if node.op_type == "Resize"]
    assert resize.input[0] not in from_integers
    # Each channel of a convolution's output has its own scale.
    scales = [t.dims for t in graph.initializer if t.name.endswith("weight_scale") and t.dims]
    assert any(dims[0] > 1 for dims in scales)


def test_no_processor_overflows(exported, int8):
    """Without VNNI two products are added in 16 bits, into which 2 x 255 x 64 still goes."""
    graph = onnx.load(int8).graph
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(weights) == len([n for n in graph.node if n.op_type in ("Conv", "Gemm")]) - 1
    # Each layer uses the range, and none goes beyond: this holds for every processor.
    assert {np.abs(weight).max() for weight in weights} <= {63, 64}
    # And this one's own integers, which may overflow here if there is no VNNI.
    options = onnxruntime.SessionOptions()
    # Unoptimized, every layer computes in floats what its integers stand for, so nothing overflows.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    rows = exported.prepared.indices("validation")
    (expected,) = exact.run(None, {"image": exported.prepared.images[rows]})
    integers = answers(int8, exported)
    # Rounding alone, which integers do elsewhere than floats; one answer may lie on an edge.
    assert np.abs(integers - expected).mean() < 0.003
    assert compare(integers, expected).largest_difference < 0.1


def test_the_same_images_give_the_same_file(exported, int8, tmp_path):
    quantize_int8(exported.path, tmp_path / "again.onnx", batches(exported))
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


def test_fp16_gives_nearly_the_same_answers_from_half_the_bytes(exported, tmp_path):
    out = tmp_path / "model.fp16.onnx"
    convert_fp16(exported.path, out)
    agreement = compare(answers(out, exported), answers(exported.path, exported))
    assert agreement.label_agreement >= 0.97
    assert 0 < agreement.largest_difference < 0.1
    assert out.stat().st_size < 0.55 * exported.path.stat().st_size
    raw = [np.full((20, 30, 3), 200, np.uint8)]  # another size: the resize is in 32-bit floats
    assert np.allclose(Predictor(out, device="cpu").probabilities(raw).sum(), 1, atol=1e-3)


def test_both_say_what_the_model_said_and_their_precision(exported, int8, tmp_path):
    convert_fp16(exported.path, tmp_path / "model.fp16.onnx")
    original = {k: v for k, v in Predictor(exported.path).metadata.items() if k != "metrics"}
    for file, precision in ((int8, "int8"), (tmp_path / "model.fp16.onnx", "fp16")):
        assert Predictor(file).metadata == {**original, "precision": precision}, "but the metrics"


def test_a_graph_without_weights_is_refused(tmp_path):
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Abs", ["image"], ["out"], name="only")
    graph = onnx.helper.make_graph([node], "none", [image], [out])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="no layer with weights"):
        convert_fp16(tmp_path / "model.onnx", tmp_path / "out.onnx")
