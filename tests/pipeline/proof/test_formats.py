"""Smaller forms: kept or not, and what is left behind where one cannot be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.params import Params
from pipeline.proof import formats
from tests.exported import Exported
from tests.tiny import tiny_params


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    shutil.copy(exported.path, tmp_path / "model.onnx")
    return tmp_path


def allow_everything() -> Params:
    return Params(**tiny_params(export__int8_max_drop=1.0, export__fp16_max_drop=1.0))


def test_both_forms_are_made_and_measured(exported: Exported, folder: Path) -> None:
    found = formats.add_variants(allow_everything(), folder, exported.prepared)
    assert {one.name for one in folder.iterdir()} == {
        "model.onnx",
        "model.int8.onnx",
        "model.fp16.onnx",
    }
    for form in found.values():
        assert (form["kept"], form["reason"]) == (True, "")
        assert 0 < form["validation_accuracy"] <= 1
        assert form["validation_accuracy_drop"] <= form["max_drop"] == 1


def test_a_network_that_cannot_be_converted_leaves_no_file_and_costs_the_other_form_nothing(
    exported: Exported,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(model: Path, out: Path, batches: object) -> None:
        out.write_bytes(b"half")
        raise RuntimeError(f"no kernel for a node of {model}")

    monkeypatch.setattr(formats, "quantize_int8", fail)
    found = formats.add_variants(allow_everything(), folder, exported.prepared)
    assert found["int8"] == {"kept": False, "reason": "it cannot be converted (RuntimeError)"}
    assert "model.int8.onnx is not written: it cannot be converted" in capsys.readouterr().out
    assert found["fp16"]["kept"]
    assert {one.name for one in folder.iterdir()} == {"model.onnx", "model.fp16.onnx"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_this_machine_lacks_is_no_property_of_the_network(
    error: Exception, exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(formats, "quantize_int8", fail)
    with pytest.raises(type(error)) as caught:
        formats.add_variants(allow_everything(), folder, exported.prepared)
    assert caught.value is error
