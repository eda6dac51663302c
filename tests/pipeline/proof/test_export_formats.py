"""Smaller formats: kept or not, and what is left behind where one cannot be made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from biotune.data import PreparedImages
from pipeline.params import ExportParams
from pipeline.proof.export_formats import FORMATS, SMALLER, SmallerFormat, add_smaller, judge
from tests.exported import Exported


def allowing(drop: float | None) -> ExportParams:
    return ExportParams(min_label_agreement=1.0, int8_max_drop=drop, fp16_max_drop=drop)


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    shutil.copy(exported.path, tmp_path / "model.onnx")
    return tmp_path


def with_int8_made_by(monkeypatch: pytest.MonkeyPatch, convert: object) -> None:
    """Let the int8 model be made in another way."""
    changed: SmallerFormat = replace(SMALLER["int8"], convert=convert)  # type: ignore[arg-type]
    monkeypatch.setitem(SMALLER, "int8", changed)  # type: ignore[misc]


def worse(model: Path, out: Path, images: PreparedImages) -> None:
    """A model that takes every image for another class."""
    graph = onnx.load(model)
    (gemm,) = [node for node in graph.graph.node if node.op_type == "Gemm"]
    (bias,) = [tensor for tensor in graph.graph.initializer if tensor.name == gemm.input[2]]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 1000
    bias.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), bias.name))
    onnx.save(graph, out)


def test_all_formats_are_made_and_measured(exported: Exported, folder: Path) -> None:
    outcomes = add_smaller(allowing(1.0), folder, exported.prepared)
    assert names_in(folder) == {form.file for form in FORMATS.values()}
    assert names_in(folder) == {"model.onnx", "model.int8.onnx", "model.fp16.onnx"}
    for outcome in outcomes.values():
        assert (outcome["kept"], outcome["reason"]) == (True, "")
        assert 0 < outcome["validation_accuracy"] <= 1
        assert outcome["validation_accuracy_drop"] <= outcome["max_drop"] == 1


def test_a_format_that_loses_too_much_is_not_kept_and_the_reason_is_said(
    exported: Exported,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_int8_made_by(monkeypatch, worse)
    outcomes = add_smaller(allowing(0.01), folder, exported.prepared)
    assert names_in(folder) == {"model.onnx", "model.fp16.onnx"}
    assert not outcomes["int8"]["kept"]
    assert outcomes["int8"]["validation_accuracy_drop"] > 0.5
    assert outcomes["fp16"]["kept"]
    reason = outcomes["int8"]["reason"]
    assert reason.startswith("validation accuracy falls by ")
    assert reason.endswith(" points, allowed are 1.00")
    assert f"model.int8.onnx is not written: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(SMALLER))
def test_each_format_has_a_bound_of_its_own(name: str) -> None:
    bounds = {"int8_max_drop": 0.02, "fp16_max_drop": 0.03}
    export = ExportParams(min_label_agreement=1.0, **bounds)
    assert SMALLER[name].max_drop(export) == bounds[f"{name}_max_drop"]


def test_just_what_is_allowed_is_kept_whatever_the_rounding_of_quotients() -> None:
    kept = judge(297 / 300, 1.0, max_drop=0.01)
    assert kept == {
        **{"kept": True, "reason": "", "validation_accuracy": 0.99, "max_drop": 0.01},
        "validation_accuracy_drop": 1 - 0.99,
    }
    assert 1 - 0.99 > 0.01
    lost = judge(0.975, 0.99, max_drop=0.01)
    reason = "validation accuracy falls by 1.50 points, allowed are 1.00"
    assert (lost["kept"], lost["reason"]) == (False, reason)
    assert judge(1.0, 0.99, max_drop=0.0)["kept"]


def test_formats_that_nobody_wants_are_not_made(
    exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was made")

    with_int8_made_by(monkeypatch, never)
    outcomes = add_smaller(allowing(None), folder, exported.prepared)
    unwanted = {"kept": False, "reason": "params.yaml says null"}
    assert outcomes == {"int8": unwanted, "fp16": unwanted}
    assert names_in(folder) == {"model.onnx"}


def test_a_network_that_cannot_be_converted_leaves_no_file_and_costs_the_other_format_nothing(
    exported: Exported,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(model: Path, out: Path, images: object) -> None:
        out.write_bytes(b"half")
        raise RuntimeError(f"no kernel for a node of {model}")

    with_int8_made_by(monkeypatch, fail)
    outcomes = add_smaller(allowing(1.0), folder, exported.prepared)
    assert outcomes["int8"] == {"kept": False, "reason": "it cannot be converted (RuntimeError)"}
    assert "model.int8.onnx is not written: it cannot be converted" in capsys.readouterr().out
    assert outcomes["fp16"]["kept"]
    assert names_in(folder) == {"model.onnx", "model.fp16.onnx"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_this_machine_lacks_is_no_property_of_the_network(
    error: Exception, exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    with_int8_made_by(monkeypatch, fail)
    with pytest.raises(type(error)) as caught:
        add_smaller(allowing(1.0), folder, exported.prepared)
    assert caught.value is error
