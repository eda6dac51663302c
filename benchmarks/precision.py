"""Which precision trains fastest on this machine: what ``runtime.precision: auto`` goes by.

Times whole training steps (forward, backward, Adam) of a network of each family in every precision
that the device has, all blocks trained, 32 images a step, on one thread. The precisions take turns
step by step, so that a drift of the machine hits all alike; what counts is the median.

``--write`` puts the figures into the table that the pipeline reads, in the place of this machine's
rows; the rows of others stay.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy

from benchmarks.reporting import describe_machine, markdown_table, one_line
from biotune.finetuning import precisions
from biotune.finetuning.backbones import build_backbone
from biotune.finetuning.compute import Compute, Precision, keep_freed_memory
from biotune.finetuning.freezing import apply_plan, set_training_mode
from biotune.finetuning.hardware import hardware_feature
from biotune.plan import FineTunePlan

FAMILIES = {"dense": ("resnet50", 96), "depthwise": ("efficientnet_lite0", 64)}
"""A network of each family, and the image size to time it at."""
CANDIDATES: dict[str, dict[str, tuple[Precision, ...]]] = {
    "cpu": {"dense": ("fp32", "bf16"), "depthwise": ("fp32", "bf16", "mixed_depthwise")},
    "cuda": {"dense": ("fp32", "tf32", "bf16"), "depthwise": ("fp32", "tf32", "bf16")},
}
BATCH, CLASSES, WARM_UP = 32, 10, 3


def training_step(family: str, compute: Compute) -> Callable[[], None]:
    """One step of full fine-tuning on random images."""
    name, size = FAMILIES[family]
    fast = compute.precision == "mixed_depthwise"
    backbone = build_backbone(name, "none", CLASSES, fast_depthwise=fast)
    backbone.network.to(compute.device)
    plan = FineTunePlan(dict.fromkeys(backbone.blocks, 1.0))
    optimizer = torch.optim.Adam(apply_plan(backbone, plan, 0.001), fused=True)
    set_training_mode(backbone, plan)
    images = torch.randn(BATCH, size, size, 3, device=compute.device, dtype=compute.dtype)
    targets = torch.arange(BATCH, device=compute.device) % CLASSES

    def step() -> None:
        compute.set_up()
        with compute.autocast():
            loss = cross_entropy(backbone.forward_from(0, images.permute(0, 3, 1, 2)), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits for a GPU

    return step


def measure(family: str, device: str, steps: int) -> dict[Precision, float]:
    """Median milliseconds of a step: CPU time on a CPU, wall time on a GPU."""
    kind = torch.device(device).type
    clock = time.process_time if kind == "cpu" else time.perf_counter
    candidates = CANDIDATES[kind][family]
    running = {one: training_step(family, Compute(device, one)) for one in candidates}
    seconds: dict[Precision, list[float]] = {one: [] for one in candidates}
    for _ in range(WARM_UP + steps):
        for precision, step in running.items():
            begin = clock()
            step()
            seconds[precision].append(clock() - begin)
    return {
        precision: round(1000 * statistics.median(measured[WARM_UP:]), 1)
        for precision, measured in seconds.items()
    }


def write_table(rows: dict[tuple[str, str], dict[Precision, float]]) -> None:
    """Replace these rows of the pipeline's table."""
    path = Path(precisions.__file__)
    head, _, _ = path.read_text(encoding="utf-8").partition("MILLISECONDS:")
    table = {**{key: dict(row) for key, row in precisions.MILLISECONDS.items()}, **rows}
    lines = ["MILLISECONDS: Mapping[tuple[str, str], Mapping[Precision, float]] = {"]
    for key in sorted(table):
        cells = ", ".join(f'"{name}": {value}' for name, value in table[key].items())
        lines.append(f'    ("{key[0]}", "{key[1]}"): {{{cells}}},')
    path.write_text(head + "\n".join([*lines, "}"]) + "\n", encoding="utf-8")


@click.command()
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1))
@click.option("--write", is_flag=True, help="Write the figures into the pipeline's table.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(device: str, steps: int, write: bool, json_file: Path | None) -> None:
    """Time training steps in each precision, and print a Markdown table.

    \b
    Examples:
      python benchmarks/precision.py
      python benchmarks/precision.py --device cuda --steps 50 --write
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    feature = hardware_feature(device)
    rows, cells = {}, []
    for family, (name, size) in FAMILIES.items():
        rows[family, feature] = measured = measure(family, device, steps)
        for precision, milliseconds in measured.items():
            gain = measured["fp32"] / milliseconds
            network = f"{name} at {size} px ({family})"
            cells.append([network, precision, str(milliseconds), f"{gain:.2f}x"])
    click.echo(f"Machine: {one_line(describe_machine())}\nDevice: {device} ({feature})\n")
    click.echo(markdown_table(["network", "precision", "ms a step", "against fp32"], cells))
    if write:
        write_table(rows)
    if json_file is not None:
        listed = [{"family": f, "feature": h, **row} for (f, h), row in rows.items()]
        json_file.write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
