"""Which precision a network trains fastest in, on the hardware at hand."""

from __future__ import annotations

import torch

from biotune.finetuning.choices import Precision


def instruction_set(device: str) -> str:
    """What decides how fast a device is at which precision: ``sm_90`` on CUDA, ``AVX2`` on a CPU.

    Args:
        device: a torch device that is there.
    """
    if torch.device(device).type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return torch.backends.cpu.get_cpu_capability()


def computes_in_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 numbers in hardware; an emulation is slower than fp32.

    Args:
        device: a torch device that is there.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def fastest_precision(family: str, device: str) -> Precision:
    """The precision in which networks of a family train fastest on a device.

    It is bf16 where the device multiplies it, but for depthwise convolutions on a CPU that are none
    of ours: torch's gradients of those are slow in bf16. Elsewhere it is fp32.

    Args:
        family: see :func:`~biotune.finetuning.backbones.convolution_family`.
        device: a torch device that is there.
    """
    # ms a step, all blocks trained, 32 images, one thread; AMD EPYC with AVX512-BF16, torch 2.14:
    # `python -m benchmarks.precision`.
    #                                fp32 (torch)  fp32 (ours)  bf16 (torch)  bf16 (ours)
    # efficientnet_lite0, 64 px           234          180           400          134
    # resnet50, 96 px (dense)            1826         1846          1119         1087
    on_cpu = torch.device(device).type == "cpu"
    if computes_in_bf16(device) and not (on_cpu and family == "other_depthwise"):
        return "bf16"
    return "fp32"
