"""Where and how precisely to compute."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import get_args

import torch

from biotune.finetuning.choices import Precision


@dataclass(frozen=True)
class Compute:
    """A torch device, a precision, and whether to compile the network.

    Attributes:
        device: such as ``cpu`` or ``cuda:0``.
        precision: see :data:`~biotune.finetuning.choices.Precision`. Weights and optimizer state
            are float32 in all of them.
        compile: compile the network's modules by ``torch.compile``.

    Raises:
        ValueError: for an unknown precision, or one that the device does not have.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ValueError(f"precision must be one of {choices}, got {self.precision!r}")
        if self.precision == "tf32" and self.device_type != "cuda":
            raise ValueError(f"precision tf32 is for cuda alone, got device {self.device!r}")

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return torch.device(self.device).type

    @property
    def dtype(self) -> torch.dtype:
        """The type of images and features."""
        return torch.float32 if self.precision in ("fp32", "tf32") else torch.bfloat16

    def autocast(self) -> torch.autocast:
        """The context in which every forward pass runs."""
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device_type, torch.bfloat16, enabled=enabled)

    def set_up(self) -> None:
        """Make this process compute so: torch's own default on CUDA mixes fp32 and tf32."""
        if self.device_type == "cuda":
            precision = "tf32" if self.precision == "tf32" else "ieee"
            torch.backends.cuda.matmul.fp32_precision = precision
            torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
            # Otherwise cuDNN's backward passes give other bits each time.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
        if self.compile:
            # torch counts all layers as one function, each with several modes and plans.
            torch._dynamo.config.recompile_limit = 1000


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, and take it again at the next step.

    glibc gives large blocks back to the system and gets them anew, page by page, at every step of
    a training: thousands of page faults each. Without glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no mmap of its own for a block of less than 1 GiB
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: keep up to 2 GiB of what is free
