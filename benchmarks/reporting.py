"""What the benchmarks of the evaluator share: the machine, the images, and Markdown tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import click
import torch

from biotune.data import PreparedImages
from biotune.finetuning.backbones import convolution_family
from biotune.finetuning.choices import Precision
from biotune.finetuning.compute import Compute
from biotune.finetuning.hardware import fastest_precision
from biotune.images import prepare_images
from biotune.images.sources import DigitsSource

PRECISIONS: Final = ("auto", "fp32", "bf16")
"""What a CPU computes in; see :data:`biotune.finetuning.choices.Precision`."""

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What decides how fast float32 and bfloat16 are on x86."""


def describe_machine() -> dict[str, str]:
    """Processor, cores, the instruction sets that matter, and versions; of Linux."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    cpu = {name.strip(): value.strip() for name, value in pairs}
    flags = cpu.get("flags", "").split()
    family = f"family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}"
    return {
        "processor": f"{cpu.get('model name', platform.machine())} ({family})",
        "cores": str(os.cpu_count()),
        "instruction sets": ", ".join(f for f in _TELLING_FLAGS if f in flags) or "?",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def compute_of(precision: str, backbone: str, device: str = "cpu") -> Compute:
    """A device in a precision; ``auto`` is the one that the pipeline chooses."""
    if precision == "auto":
        return Compute(device, fastest_precision(convolution_family(backbone), device))
    return Compute(device, cast("Precision", precision))


def prepare_digits(folder: Path, image_size: int, images: int) -> PreparedImages:
    """Prepare scikit-learn's digits: so many images to train on, and as many to validate on."""
    return prepare_images(
        DigitsSource(),
        folder,
        image_size=image_size,
        train_images=images,
        validation_images=images,
        seed=0,
    )


def check_device(context: click.Context, parameter: click.Parameter, device: str) -> str:
    """A click callback: a torch device that is there.

    Raises:
        click.BadParameter: for any other.
    """
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise click.BadParameter(f"{device!r} is no device: cpu, cuda or cuda:1") from error
    if kind.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"{device!r} is not measured: cpu, cuda or cuda:1")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise click.BadParameter(
            f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, there is no "
            f"{device}; give --device cpu"
        )
    return device


def one_line(figures: Mapping[str, object]) -> str:
    """Figures on one line, such as the machine, or a command's options."""
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items())


def options_of_command() -> dict[str, object]:
    """Every option of the click command that runs, as it was given or by default."""
    return {n: v for n, v in click.get_current_context().params.items() if n != "json_file"}


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text, and all others figures."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *rows])
