"""Which precision a network trains fastest in, on the hardware at hand."""

from __future__ import annotations

import torch

from biotune.finetuning.compute import Precision
from biotune.finetuning.precisions import MILLISECONDS


def hardware_feature(device: str) -> str:
    """What decides a precision's speed: ``sm_90`` and the like on CUDA, a CPU's bf16 unit, if any.

    Args:
        device: a torch device that is there.
    """
    if torch.device(device).type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    if torch.cpu._is_avx512_bf16_supported():
        return "avx512_bf16"
    return "cpu"


def fastest_precision(family: str, device: str) -> Precision:
    """The precision in which networks of a family train fastest, by the table of measurements.

    Where nobody has measured, it is bf16 on a GPU that computes in it, else fp32.

    Args:
        family: ``depthwise`` or ``dense``; see :func:`~.backbones.convolution_family`.
        device: a torch device that is there.
    """
    measured = MILLISECONDS.get((family, hardware_feature(device)))
    if measured:
        return min(measured, key=lambda precision: measured[precision])
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"
