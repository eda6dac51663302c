"""What ``runtime.device`` and ``runtime.precision`` mean on this machine."""

from __future__ import annotations

from typing import Literal

import torch

from biotune.finetuning.compute import Compute


def resolve_compute(device: str, precision: Literal["auto", "fp32", "bf16"]) -> Compute:
    """What ``runtime.device`` and ``runtime.precision`` mean on this machine.

    ``auto`` is CUDA where there is one, and bf16 where a GPU computes in it, else fp32: on CPUs
    bf16 is slower for networks with depthwise convolutions.

    Raises:
        ValueError: if the named device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    index = torch.device(device).index or 0
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ValueError(
            f"runtime.device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; use 'auto' or 'cpu'"
        )
    if precision == "auto":
        bf16 = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if bf16 else "fp32"
    return Compute(device, precision)
