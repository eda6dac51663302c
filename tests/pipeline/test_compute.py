"""What the runtime section means here, and that ``auto`` goes by what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from biotune.finetuning import hardware
from biotune.finetuning.backbones import convolution_family
from biotune.finetuning.compute import Compute
from pipeline.compute import describe, resolve_compute
from pipeline.params import Params, RuntimeParams


def runtime(params: Params, **changes: Any) -> RuntimeParams:
    return params.runtime.model_copy(update={"device": "cpu", **changes})


@pytest.mark.parametrize(
    ("backbone", "family"), [("efficientnet_lite0", "depthwise"), ("resnet50", "dense")]
)
def test_a_networks_family_says_whether_it_has_depthwise_convolutions(
    backbone: str, family: str
) -> None:
    assert convolution_family(backbone) == family


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50"])
def test_auto_is_the_precision_that_the_table_says_is_fastest(
    default_params: Params, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    family = convolution_family(backbone)
    monkeypatch.setattr(hardware, "hardware_feature", lambda _: "measured")
    rows = {(family, "measured"): {"fp32": 3.0, "bf16": 1.0, "mixed_depthwise": 2.0}}
    monkeypatch.setattr(hardware, "MILLISECONDS", rows)
    assert resolve_compute(runtime(default_params), backbone) == Compute("cpu", "bf16")
    rows[family, "measured"]["fp32"] = 0.5
    assert resolve_compute(runtime(default_params), backbone) == Compute("cpu", "fp32")


def test_auto_is_fp32_on_a_cpu_that_nobody_measured(
    default_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "MILLISECONDS", {})
    assert resolve_compute(runtime(default_params), "resnet50") == Compute("cpu", "fp32")


def test_the_table_was_measured_on_every_cpu_that_it_names() -> None:
    """In the precisions that there are; a network of each family on each."""
    features = {feature for _, feature in hardware.MILLISECONDS}
    assert "avx512_bf16" in features
    assert set(hardware.MILLISECONDS) == {(f, h) for f in ("dense", "depthwise") for h in features}
    for row in hardware.MILLISECONDS.values():
        assert row["fp32"] > 0
        assert len(row) >= 2


def test_a_named_precision_is_taken_as_it_is(default_params: Params) -> None:
    chosen = runtime(default_params, precision="mixed_depthwise", compile=True)
    compute = resolve_compute(chosen, "resnet50")
    assert compute == Compute("cpu", "mixed_depthwise", compile=True)
    feature = hardware.hardware_feature("cpu")
    assert describe(compute) == f"cpu ({feature}), mixed_depthwise, compiled"


def test_what_is_not_there_is_named(default_params: Params) -> None:
    with pytest.raises(ValueError, match=r"runtime\.device is 'cuda:99', but torch sees"):
        resolve_compute(runtime(default_params, device="cuda:99"), "resnet50")
    with pytest.raises(ValueError, match="tf32 is for cuda alone"):
        resolve_compute(runtime(default_params, precision="tf32"), "resnet50")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_on_cuda_is_bf16_where_the_gpu_computes_in_it(default_params: Params) -> None:
    compute = resolve_compute(runtime(default_params, device="auto"), "resnet50")
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert compute == Compute("cuda", "bf16" if bf16 else "fp32")
