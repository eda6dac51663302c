"""A bundle checked far from where it was made: whole, or found out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from biotune.commands.group import main
from biotune.data.prepared import describe_file
from biotune.deployment.bundle import check_bundle, write_samples
from biotune.deployment.predictor import Predictor
from biotune.images import DigitsSource


@pytest.fixture
def bundle(exported, tmp_path):
    """The folder as the export stage leaves it, as far as checking needs it."""
    folder = tmp_path / "deploy"
    folder.mkdir()
    shutil.copy(exported.path, folder / "model.onnx")
    samples = [DigitsSource().load(index) for index in range(4)]
    samples.append(np.full((20, 30, 3), 128, np.uint8))
    answers = Predictor(folder / "model.onnx", device="cpu").probabilities(samples)
    write_samples(folder / "samples.npz", samples, {"model.onnx": answers})
    labels = {"classes": list(exported.card.classes)}
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    write_checksums(folder)
    return folder


def write_checksums(folder):
    files = {file.name: describe_file(file) for file in folder.iterdir() if file.suffix != ".txt"}
    files.pop("verification.json", None)
    (folder / "verification.json").write_text(json.dumps({"files": files}))


def verify(folder):
    result = CliRunner().invoke(main, ["verify", str(folder / "model.onnx")])
    return result.exit_code, result.output


def test_a_whole_bundle_passes_wherever_it_is_moved(bundle, tmp_path):
    moved = tmp_path / "elsewhere é"
    bundle.rename(moved)
    code, said = verify(moved)
    assert code == 0
    assert "5 of 5 labels as exported" in said
    assert "is as it was exported" in said
    assert len(check_bundle(moved / "model.onnx")) == 5


@pytest.mark.parametrize("name", ["model.onnx", "labels.json", "samples.npz"])
def test_a_flipped_bit_anywhere_is_found(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 4
    (bundle / name).write_bytes(content)
    code, said = verify(bundle)
    assert code == 1
    assert f"WRONG {name}" in said
    assert "is not the file that was exported" in said
    assert "NOT as it was exported" in said


def test_a_model_that_answers_otherwise_is_found_even_with_a_right_checksum(bundle):
    model = onnx.load(bundle / "model.onnx")
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == gemm.input[2]]
    values = onnx.numpy_helper.to_array(bias)[::-1].copy() + np.arange(10, dtype=np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, bundle / "model.onnx")
    write_checksums(bundle)
    code, said = verify(bundle)
    assert code == 1
    assert "WRONG answers" in said


def test_other_class_names_are_found_even_with_right_checksums(bundle):
    (bundle / "labels.json").write_text(json.dumps({"classes": list("abcdefghij")}))
    write_checksums(bundle)
    code, said = verify(bundle)
    assert code == 1
    assert "WRONG metadata" in said


def test_what_is_missing_is_named(bundle):
    (bundle / "samples.npz").unlink()
    code, said = verify(bundle)
    assert (code, "WRONG samples.npz" in said, "it is missing" in said) == (1, True, True)
    (bundle / "verification.json").unlink()
    code, said = verify(bundle)
    assert code == 1
    assert "keep the folder together" in said
    assert "Traceback" not in said


def test_a_model_under_another_name_and_a_damaged_proof_are_said(bundle):
    shutil.copy(bundle / "model.onnx", bundle / "renamed.onnx")
    result = CliRunner().invoke(main, ["verify", str(bundle / "renamed.onnx")])
    assert result.exit_code == 1
    assert "knows no renamed.onnx, only" in result.output
    (bundle / "verification.json").write_text("{")
    code, said = verify(bundle)
    assert code == 1
    assert "verification.json is damaged" in said
