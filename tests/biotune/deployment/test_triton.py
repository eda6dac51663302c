"""The model repository, read by Triton's own schema."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from biotune.deployment.triton import write_triton_repository


def test_the_configuration_is_what_triton_reads(exported, tmp_path):
    classes = (*exported.card.classes[:-1], "two\nlines")
    write_triton_repository(tmp_path / "triton", exported.path, classes)
    folder = tmp_path / "triton/biotune"
    config = text_format.Parse(
        (folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    assert config.name == folder.name
    assert config.backend == "onnxruntime"
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    (image,), (probabilities,) = config.input, config.output
    # Triton puts the batch before these by itself.
    assert (image.name, list(image.dims)) == ("image", [-1, -1, 3])
    assert image.data_type == model_config_pb2.TYPE_UINT8
    assert (probabilities.name, list(probabilities.dims)) == ("probabilities", [10])
    labels = (folder / probabilities.label_filename).read_text(encoding="utf-8").split("\n")
    assert labels == [*classes[:-1], "two lines", ""]
    assert (folder / "1/model.onnx").read_bytes() == exported.path.read_bytes()
