"""The exported graph: the network's answers at any size, and nothing of this machine inside."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import biotune
from biotune.deployment.export import Classifier
from biotune.finetuning.training import ImageSubset, predict_probabilities
from biotune.images import DigitsSource


@pytest.fixture(scope="module")
def session(exported) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(exported.path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model(exported) -> onnx.ModelProto:
    return onnx.load(exported.path, load_external_data=False)


def photos(batch: int, height: int, width: int) -> np.ndarray:
    """Digits stretched to this size, tinted and grainy: a different one each."""
    rng = np.random.default_rng(0)
    digits = torch.from_numpy(np.stack([DigitsSource().load(index) for index in range(batch)]))
    stretched = torch.nn.functional.interpolate(
        digits.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear"
    )
    tint = np.array([1.0, 0.9, 0.8])
    grain = rng.uniform(-20, 20, (batch, height, width, 3))
    grainy = stretched.permute(0, 2, 3, 1).numpy() * tint + grain
    return grainy.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("height", "width", "tolerance"),
    # A resized value halfway between two levels may be rounded to either (test_transforms.py),
    # and the network sees it. Between sides without common factors that is rare.
    [(48, 48, 1e-5), (53, 97, 1e-2), (211, 149, 1e-2)],
)
@torch.inference_mode()
def test_the_graph_agrees_with_torch_at_any_batch_height_and_width(
    exported, session, batch, height, width, tolerance
):
    images = photos(batch, height, width)
    (probabilities,) = session.run(None, {"image": images})
    expected = Classifier(exported.backbone, 48)(torch.from_numpy(images)).numpy()
    assert probabilities.shape == (batch, 10)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.abs(probabilities - expected).max() < tolerance
    for answer, next_answer in pairwise(probabilities):
        assert np.abs(answer - next_answer).max() > 5e-2


def test_raw_images_get_the_labels_that_prepared_ones_get_in_training(exported, session):
    prepared = exported.prepared
    indices = prepared.indices("validation")
    # Digits are 8 × 8 pixels; the graph and the prepare stage each resize them.
    raw = np.stack([DigitsSource().load(index) for index in indices])
    (probabilities,) = session.run(None, {"image": raw})
    subset = ImageSubset(prepared.images, prepared.labels, indices)
    expected = predict_probabilities(exported.backbone, subset)
    assert np.abs(probabilities - expected).max() < 1e-4
    assert len(set(expected.argmax(axis=1))) > 3


def test_colours_are_those_of_training(exported, session):
    """Digits are grey, and would not show it: tinted, they are other images with red for blue."""
    images = photos(8, 48, 48)
    subset = ImageSubset(images, np.zeros(8, np.int64), np.arange(8))
    expected = predict_probabilities(exported.backbone, subset)
    (probabilities,) = session.run(None, {"image": images})
    assert np.abs(probabilities - expected).max() < 1e-4
    (swapped,) = session.run(None, {"image": images[..., ::-1]})
    assert np.abs(swapped - expected).max() > 1e-2


def test_names_types_and_free_dimensions_are_the_promised_ones(session):
    (image,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", "height", "width", 3]
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", 10]


def test_the_file_says_its_classes_plan_backbone_and_size(exported, session):
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list(exported.card.classes)
    assert "冬" in said["classes"]  # readable without decoding escapes
    assert json.loads(said["plan"]) == dict(exported.card.plan)
    assert said["backbone"] == "efficientnet_lite0"
    assert said["image_size"] == "48"


def test_all_weights_are_in_the_one_file(exported, model):
    assert [file.name for file in exported.path.parent.iterdir()] == ["model.onnx"]
    external = onnx.TensorProto.EXTERNAL
    assert not any(tensor.data_location == external for tensor in model.graph.initializer)
    parameters = sum(p.numel() for p in exported.backbone.network.parameters())
    assert exported.path.stat().st_size > 4 * 0.95 * parameters


def test_nothing_tells_of_the_machine_that_wrote_it(exported, model):
    checkout = Path(biotune.__file__).resolve().parents[1]
    whole = exported.path.read_bytes()
    for trace in (str(checkout), "/work", str(Path.home()), sys.prefix, "site-packages", "forward"):
        assert len(trace) > 4
        assert trace.encode() not in whole, trace
    # Shorter words also occur in weights by chance.
    assert model.graph.initializer
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    text = model.SerializeToString()
    assert b"probabilities" in text
    assert len(text) < len(whole) / 10
    for trace in (b".py", b"File ", b"line ", b"torch/", b"torch.", b"stack"):
        assert trace not in text, trace


def test_onnx_accepts_the_file_at_the_promised_opset(exported, model):
    onnx.checker.check_model(exported.path, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [
        ("", 20)
    ]


WITHOUT_TORCH = """
import json, sys
sys.modules.update(torch=None, torchvision=None, timm=None, biotune=None)
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
(probabilities,) = session.run(["probabilities"], {"image": numpy.load(sys.argv[2])})
print(json.dumps([classes[index] for index in probabilities.argmax(axis=1)]))
"""


def test_it_gives_the_same_labels_where_there_is_no_torch(exported, tmp_path):
    prepared = exported.prepared
    indices = prepared.indices("validation")[:10]
    np.save(tmp_path / "images.npy", prepared.images[indices])
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, exported.path, tmp_path / "images.npy"],
        check=True,
        capture_output=True,
        text=True,
    )
    subset = ImageSubset(prepared.images, prepared.labels, indices)
    expected = predict_probabilities(exported.backbone, subset).argmax(axis=1)
    assert json.loads(answer.stdout) == [exported.card.classes[index] for index in expected]
    assert len(set(expected)) > 1
