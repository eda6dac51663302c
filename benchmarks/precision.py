"""What a training step costs in each precision, with torch's layers and with ours.

Times whole training steps (forward, backward, Adam) of 32 images on one thread: of a network with
depthwise convolutions and of a dense one, with all blocks trained and with the early half of them
frozen. On a CPU ``fp32 (torch)`` is the network as its library builds it, and ``(ours)`` the one
that the pipeline trains (:mod:`biotune.finetuning.convolutions`, ``.batchnorm``). All take turns
step by step in one process, so that a drift of the machine hits them alike; the figures are
medians. ``runtime.precision: auto`` is the rule that ``biotune.finetuning.hardware`` drew of it.

To see on a newer processor what one with AVX2 alone does, set ``ONEDNN_MAX_CPU_ISA=AVX2`` and
``ATEN_CPU_CAPABILITY=avx2``; bf16 is then left out.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmarks.reporting import check_device, describe_machine, markdown_table, one_line
from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.freezing import apply_plan, set_training_mode
from biotune.finetuning.hardware import computes_in_bf16
from biotune.plan import FineTunePlan

NETWORKS = {"efficientnet_lite0": 64, "resnet50": 96}
"""With depthwise convolutions, and without; and the image size to time each at."""

BATCH, CLASSES, WARM_UP = 32, 10, 3


@dataclass(frozen=True)
class Candidate:
    """A way to compute.

    Attributes:
        name: for the table.
        compute: device and precision.
        ours: with the layers that the pipeline uses on a CPU.
    """

    name: str
    compute: Compute
    ours: bool


def candidates(device: str) -> Iterator[Candidate]:
    """What can be compared on a device, the one that others are held against first."""
    if torch.device(device).type == "cuda":
        for precision in ("fp32", "tf32", "bf16"):
            yield Candidate(precision, Compute(device, precision), ours=False)
        return
    yield Candidate("fp32 (torch)", Compute(device), ours=False)
    yield Candidate("fp32 (ours)", Compute(device), ours=True)
    if computes_in_bf16(device) and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() != "AVX2":
        yield Candidate("bf16 (torch)", Compute(device, "bf16"), ours=False)
        yield Candidate("bf16 (ours)", Compute(device, "bf16"), ours=True)


def plans(backbone: Backbone) -> dict[str, FineTunePlan]:
    """All blocks trained; and the later half of them alone."""
    blocks = list(backbone.blocks)
    early = blocks[: len(blocks) // 2]
    return {
        "all blocks trained": FineTunePlan(dict.fromkeys(blocks, 1.0)),
        "early half frozen": FineTunePlan({b: None if b in early else 1.0 for b in blocks}),
    }


def training_step(
    candidate: Candidate, network: str, trained: str, image_size: int
) -> Callable[[], None]:
    """One step on random images; a frozen prefix is computed anew each time, without a cache."""
    compute = candidate.compute
    backbone = build_backbone(network, "none", CLASSES, for_cpu=candidate.ours)
    backbone.to(compute.device)
    plan = plans(backbone)[trained]
    optimizer = torch.optim.Adam(apply_plan(backbone, plan, 0.001), fused=True)
    set_training_mode(backbone, plan)
    shape = (BATCH, image_size, image_size, 3)
    images = torch.randn(shape, device=compute.device, dtype=compute.dtype).permute(0, 3, 1, 2)
    targets = torch.arange(BATCH, device=compute.device) % CLASSES

    def step() -> None:
        compute.set_up()
        with compute.autocast():
            loss = cross_entropy(backbone.forward_from(0, images), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits for a GPU

    return step


def measure(device: str, network: str, trained: str, size: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a step: CPU time on a CPU, wall time on a GPU."""
    on_cpu = torch.device(device).type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    running = {c.name: training_step(c, network, trained, size) for c in candidates(device)}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in tqdm(range(WARM_UP + steps), desc=f"{network}, {trained}", unit="step", leave=False):
        for name, step in running.items():
            begin = clock()
            step()
            seconds[name].append(clock() - begin)
    return {
        name: round(1000 * statistics.median(measured[WARM_UP:]), 1)
        for name, measured in seconds.items()
    }


@click.command()
@click.option(
    "--device", default="cpu", show_default=True, callback=check_device, help="cpu, cuda or cuda:1."
)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("--image-size", type=click.IntRange(32), help="Pixels, instead of each one's own.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    device: str,
    networks: tuple[str, ...],
    image_size: int | None,
    steps: int,
    json_file: Path | None,
) -> None:
    """Time training steps in each precision, and print two Markdown tables.

    \b
    Examples:
      python -m benchmarks.precision
      python -m benchmarks.precision --network efficientnet_lite0 --image-size 96
      python -m benchmarks.precision --device cuda --steps 50
      ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.precision
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for trained in ("all blocks trained", "early half frozen"):
        cells = []
        for network in networks or NETWORKS:
            size = image_size or NETWORKS[network]
            measured = measure(device, network, trained, size, steps)
            first = next(iter(measured.values()))
            for name, milliseconds in measured.items():
                row = {"network": network, "px": size, "trained": trained, "precision": name}
                rows.append({**row, "ms": milliseconds, "speed-up": first / milliseconds})
                speed_up = f"{first / milliseconds:.2f}x"
                cells.append([f"{network}, {size} px", name, f"{milliseconds:.1f}", speed_up])
        click.echo(f"\n{trained.capitalize()}\n")
        click.echo(markdown_table(["network", "precision", "ms a step", "speed-up"], cells))
    limits = {
        n: os.environ[n] for n in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if n in os.environ
    }
    click.echo(f"\nMachine: {one_line({**describe_machine(), **limits})}\nDevice: {device}")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
