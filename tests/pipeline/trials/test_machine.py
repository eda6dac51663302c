"""What the runtime section means here, and which precision ``auto`` is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from biotune.finetuning.backbones import convolution_family
from biotune.finetuning.compute import Compute
from pipeline.params import Params, RuntimeParams
from pipeline.trials.machine import describe, resolve_compute


def runtime(params: Params, **changes: Any) -> RuntimeParams:
    return params.runtime.model_copy(update={"device": "cpu", **changes})


@pytest.mark.parametrize(
    ("backbone", "family"), [("efficientnet_lite0", "depthwise"), ("resnet50", "dense")]
)
def test_a_networks_family_says_whether_it_has_depthwise_convolutions(
    backbone: str, family: str
) -> None:
    assert convolution_family(backbone) == family


@pytest.mark.parametrize(
    ("backbone", "in_bf16"),
    [("efficientnet_lite0", "bf16"), ("resnet50", "bf16"), ("convnext_tiny", "fp32")],
)
def test_auto_is_bf16_where_a_cpu_multiplies_it_but_for_depthwise_layers_that_are_none_of_ours(
    default_params: Params, monkeypatch: pytest.MonkeyPatch, backbone: str, in_bf16: str
) -> None:
    for has_bf16, precision in ((True, in_bf16), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda h=has_bf16: h)
        assert resolve_compute(runtime(default_params), backbone) == Compute("cpu", precision)


def test_a_named_precision_is_taken_as_it_is(default_params: Params) -> None:
    chosen = runtime(default_params, precision="bf16", compile=True)
    compute = resolve_compute(chosen, "resnet50")
    assert compute == Compute("cpu", "bf16", compile=True)
    instructions = torch.backends.cpu.get_cpu_capability()
    assert describe(compute) == f"cpu ({instructions}), bf16, compiled"


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
