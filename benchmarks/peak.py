"""How close full fine-tuning comes to what the processor can do, and what is in the way.

What it can do is measured, not looked up: the best of several runs of a large matrix product and of
a large 3 x 3 convolution (channels_last), on one thread, in float32 and in bfloat16. What it does
is every floating-point operation of the convolutions and linear layers in one whole call of
``Trainer.train`` (two for a multiplication and addition, counted by torch's ``FlopCounterMode``),
divided by the wall seconds of that call: resetting the network, validation, BatchNorm, the
optimizer and the freeze proof are all in those seconds, and none of it is in the operations.

The profile is torch's, by the time that each operator spends itself. Where convolutions copy a
tensor into a layout of their own, inside oneDNN, that is in the convolutions' time.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.functional import conv2d
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reporting import (
    PRECISIONS,
    compute_of,
    describe_machine,
    markdown_table,
    one_line,
    options_of_command,
    prepare_digits,
)
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan

REPEATS = 5
MATRIX = 3072
"""Rows and columns of the product's matrices: 58 GFLOP, and larger than the processor's caches."""
CHANNELS, PIXELS, IMAGES = 256, 56, 16
"""Of the convolution: 59 GFLOP, of the shape of a ResNet-50's in its second stage and beyond."""

OPERATORS = {
    "convolution, backward": r"[Cc]onv\w*_?[Bb]ackward",
    "convolution, forward": r"[Cc]onv",
    "BatchNorm": r"[Bb]atch_?[Nn]orm",
    "linear": r"mm$|linear",
    "optimizer": r"[Aa]dam|Optimizer",
    "copies and casts": r"copy|clone|contiguous|::pad|_pad_|::to$",
    "activations and additions": r"relu|threshold|hardtanh|clamp|::add_?$",
    "everything else": r"",
}
"""The groups of a profile's operators; an operator is in the first that it matches."""


@dataclass(frozen=True)
class Achieved:
    """One whole run of full fine-tuning.

    Attributes:
        precision: of the run.
        seconds: wall time, the best of several runs.
        gflop: 10^9 floating-point operations, by operator group; zero where none were counted.
        profile: operator group → seconds, of one further run.
    """

    precision: str
    seconds: float
    gflop: dict[str, float]
    profile: dict[str, float]


def measure_peaks() -> dict[str, float]:
    """GFLOP/s of the best run, for each precision and kind of work."""
    peaks = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
        seconds = _best_seconds(partial(torch.mm, left, right))
        peaks[f"{precision} matrix product"] = 2 * MATRIX**3 / seconds / 1e9
        shapes = [(IMAGES, CHANNELS, PIXELS, PIXELS), (CHANNELS, CHANNELS, 3, 3)]
        images, kernel = (
            torch.randn(shape).to(dtype, memory_format=torch.channels_last) for shape in shapes
        )
        seconds = _best_seconds(partial(conv2d, images, kernel, padding=1))
        flop = 2 * IMAGES * PIXELS**2 * CHANNELS**2 * 9
        peaks[f"{precision} convolution"] = flop / seconds / 1e9
    return peaks


def measure_training(
    trainer: Trainer, settings: TrainingSettings, gflop: dict[str, float]
) -> Achieved:
    """Fine-tune the whole network, again and again."""
    train = _full_fine_tuning(trainer, settings)
    seconds = _best_seconds(train)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        train()
    groups = dict.fromkeys(OPERATORS, 0.0)
    for operator in profiler.key_averages():
        groups[_group_of(operator.key)] += operator.self_cpu_time_total / 1e6
    return Achieved(trainer.compute.precision, seconds, gflop, groups)


def count_gflop(trainer: Trainer, settings: TrainingSettings) -> dict[str, float]:
    """10^9 floating-point operations of one run, by operator group."""
    counter = FlopCounterMode(display=False, custom_mapping=BACKWARD_FLOP)
    with counter:
        _full_fine_tuning(trainer, settings)()
    groups = dict.fromkeys(OPERATORS, 0.0)
    for operator, flop in counter.get_flop_counts()["Global"].items():
        groups[_group_of(str(operator))] += flop / 1e9
    return groups


def _full_fine_tuning(trainer: Trainer, settings: TrainingSettings) -> Callable[[], object]:
    plan = FineTunePlan(dict.fromkeys(trainer.backbone.blocks, 1.0))
    return partial(trainer.train, TrainingTask(plan, 0, settings))


def _group_of(operator: str) -> str:
    return next(group for group, pattern in OPERATORS.items() if re.search(pattern, operator))


def _best_seconds(work: Callable[[], object]) -> float:
    """Wall time of the fastest of several runs; one more before them is not counted."""
    work()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _backward_flop(
    grad: torch.Size, _: torch.Size, kernel: torch.Size, *rest: Any, **__: Any
) -> int:
    """Operations of a convolution's backward pass; each of its two gradients costs the forward's.

    torch's own count (2.14) is many times too large where the convolution has groups.

    Args:
        grad: shape of the output's gradient, [N, O, H, W].
        kernel: shape of the kernel, [O, C / groups, h, w].
        rest: the further arguments of ``aten::convolution_backward``; the last says whether the
            gradients of image and kernel are asked for.
    """
    wanted = sum(rest[-1][:2])
    return int(2 * math.prod(grad) * math.prod(kernel[1:]) * wanted)


BACKWARD_FLOP = {torch.ops.aten.convolution_backward: _backward_flop}
"""How to count a convolution's backward pass, for ``FlopCounterMode``'s ``custom_mapping``."""


def peaks_table(peaks: dict[str, float]) -> str:
    rows = [[name, f"{gflops:.0f}"] for name, gflops in peaks.items()]
    return markdown_table(["measured peak, one thread", "GFLOP/s"], rows)


def achieved_table(runs: list[Achieved], peaks: dict[str, float]) -> str:
    columns = [
        "full fine-tuning",
        "s",
        "GFLOP",
        "GFLOP/s",
        "of peak convolution",
        "of peak product",
    ]
    return markdown_table(columns, [_achieved_cells(run, peaks) for run in runs])


def _achieved_cells(run: Achieved, peaks: dict[str, float]) -> list[str]:
    gflop = sum(run.gflop.values())
    rate = gflop / run.seconds
    return [
        run.precision,
        f"{run.seconds:.2f}",
        f"{gflop:.0f}",
        f"{rate:.1f}",
        f"{rate / peaks[f'{_peak_of(run)} convolution']:.0%}",
        f"{rate / peaks[f'{_peak_of(run)} matrix product']:.0%}",
    ]


def _peak_of(run: Achieved) -> str:
    return "fp32" if run.precision == "fp32" else "bf16"


def profile_table(runs: list[Achieved]) -> str:
    """Each group's seconds, share of the run, and GFLOP/s where they are known."""
    columns = ["operators"]
    columns += [f"{run.precision}: {what}" for run in runs for what in ("s", "share", "GFLOP/s")]
    rows = []
    for group in OPERATORS:
        cells = [group]
        for run in runs:
            seconds, gflop = run.profile[group], run.gflop[group]
            rate = f"{gflop / seconds:.1f}" if gflop else ""
            cells += [f"{seconds:.2f}", f"{seconds / sum(run.profile.values()):.1%}", rate]
        rows.append(cells)
    return markdown_table(columns, rows)


@click.command()
@click.option("--backbone", default="resnet50", show_default=True, help="As model.backbone.")
@click.option("--weights", default="none", show_default=True, help="imagenet, none or a file.")
@click.option("--image-size", default=96, show_default=True, type=click.IntRange(32))
@click.option("--images", default=128, show_default=True, help="To train, and as many to validate.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(2))
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32", "bf16", "auto"),
    show_default=True,
    type=click.Choice(PRECISIONS),
    help="May be given several times.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    backbone: str,
    weights: str,
    image_size: int,
    images: int,
    epochs: int,
    batch_size: int,
    precisions: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Full fine-tuning against the processor's measured peak, and its profile; Markdown tables.

    \b
    Examples:
      python benchmarks/peak.py
      python benchmarks/peak.py --backbone efficientnet_lite0 --weights imagenet --image-size 64
      python benchmarks/peak.py --images 32 --json peak.json
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    settings = TrainingSettings(epochs, epochs, batch_size, base_lr=1e-3)
    computes = dict.fromkeys(compute_of(precision, backbone) for precision in precisions)
    peaks = measure_peaks()
    with tempfile.TemporaryDirectory() as work:
        prepare_digits(Path(work, "prepared"), image_size, images)
        start = partial(Trainer, Path(work, "prepared"), backbone, weights)
        # Of float32 for all of them: what another precision adds to it is not useful work.
        gflop = count_gflop(start(Compute()), settings)
        runs = [measure_training(start(compute), settings, gflop) for compute in computes]
    machine, options = describe_machine(), options_of_command()
    click.echo(f"{one_line(machine)}\n{one_line(options)}")
    for table in (peaks_table(peaks), achieved_table(runs, peaks), profile_table(runs)):
        click.echo(f"\n{table}")
    if json_file is not None:
        content = {"machine": machine, "options": options, "peak_gflops": peaks}
        content |= {"runs": [asdict(run) for run in runs]}
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
