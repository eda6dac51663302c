"""What ``runtime.device`` and ``runtime.precision`` mean on this machine."""

from __future__ import annotations

from typing import Literal

import torch

from biotune.finetuning.training import Compute


def resolve_compute(device: str, precision: Literal["auto", "fp32", "bf16"]) -> Compute:
    """What ``runtime.device`` and ``runtime.precision`` mean on this machine.

    ``auto`` is CUDA where there is one, and bf16 on CUDA, else fp32: on CPUs bf16 is slower for
    networks with depthwise convolutions.

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
        precision = "fp32" if device == "cpu" else "bf16"
    return Compute(device, precision)
