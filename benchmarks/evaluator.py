"""What our evaluator saves, lever by lever, against the one that people ordinarily write.

The same plans are trained with the same seeds, images and epochs by each of these, one after the
other; each has what the one before it has, and one thing more:

1. naive: ``benchmarks/naive.py``, which says what it does;
2. images in memory: prepared once and never decoded again, nothing written to disk, one network
   that is reset in place, frozen BatchNorm in evaluation mode (float32, contiguous, Adam as it is);
3. channels_last, and Adam in one fused kernel;
4. the precision that ``auto`` chooses for this processor and network, or another one;
5. the features of frozen prefixes, each computed once; they are kept from plan to plan, as in a
   search, and the seconds that computing them takes are counted, and also shown by themselves;
6. memory that is freed stays with the process, as in the worker processes of a search.

Two sets of plans: random ones, as in a search's first generation, and random ones whose early half
of the blocks is frozen. Levers take turns at each plan, in an order that rotates, so that a drift
of the machine hits all alike. One thread. CPU seconds are the process's, the kernel's share
included; loading libraries, preparing images and a first run of one epoch are not counted, since a
search pays for them once. No run stops early: all levers train the same number of epochs.

The naive evaluator's images are PNG files of the prepared size, so decoding is as cheap for it as
it can be. Its accuracies differ for two reasons beside rounding: its frozen BatchNorm adapts to the
images, and it draws another order of them. Without pretrained weights (ResNet-50's are a download)
accuracies are near chance, and only the seconds mean something.

Each lever runs in a process of its own, new for each set of plans. Peak memory is that process's,
less what the libraries alone take; the first run, of the whole network, is among what it holds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.levers import LEVERS, LeverProcess, Measured, Setup
from benchmarks.naive import write_image_files
from benchmarks.reporting import (
    PRECISIONS,
    compute_of,
    describe_machine,
    markdown_table,
    one_line,
    options_of_command,
    prepare_digits,
)
from biotune.evolution import Genome, decode
from biotune.finetuning.backbones import block_sizes
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan

BASE_LR = 1e-3


@dataclass(frozen=True)
class Run:
    """One plan trained by one lever. ``accuracy`` is the best epoch's; None if the run diverged."""

    plans: str
    plan: dict[str, float | None]
    lever: str
    cpu_seconds: float
    wall_seconds: float
    prefix_seconds: float
    epochs: int
    accuracy: float | None


def draw_plans(blocks: Sequence[str], genomes: int, frozen: int) -> list[FineTunePlan]:
    """Random plans that train something, their first ``frozen`` blocks frozen."""
    rng = np.random.default_rng(0)
    plans: list[FineTunePlan] = []
    while len(plans) < genomes:
        genome = Genome.random_viable(rng, len(blocks))
        importances = genome.importances.copy()
        importances[:frozen] = 0  # never above the threshold
        genome = Genome(importances, genome.threshold)
        if genome.is_viable():
            plans.append(decode(genome, blocks))
    return plans


def compare(
    name: str,
    plans: list[FineTunePlan],
    setup: Setup,
    settings: TrainingSettings,
    chosen: Sequence[str] = tuple(LEVERS),
) -> tuple[list[Run], dict[str, float]]:
    """Train every plan by every lever in turns; the runs, and each lever's peak memory in MiB."""
    with ExitStack() as stack:
        levers = {lever: stack.enter_context(LeverProcess(lever, setup)) for lever in chosen}
        # The whole network, so that nothing of the plans themselves is computed before its time.
        everything = FineTunePlan(dict.fromkeys(plans[0], 1.0))
        once = replace(settings, epochs=1)
        for started in [process.train(everything, once, 0) for process in levers.values()]:
            started.result()
        runs = []
        for turn, plan in enumerate(plans):
            click.echo(f"{name}, plan {turn + 1} of {len(plans)}: {plan}", err=True)
            order = list(levers)
            for lever in order[turn % len(order) :] + order[: turn % len(order)]:
                measured = levers[lever].train(plan, settings, turn).result()
                runs.append(_run(name, plan, lever, measured, settings.epochs))
        return runs, {lever: process.peak_memory() for lever, process in levers.items()}


def _run(name: str, plan: FineTunePlan, lever: str, measured: Measured, epochs: int) -> Run:
    accuracies = measured.accuracies
    best = max(accuracies) if len(accuracies) == epochs else None
    cpu, wall = measured.cpu_seconds, measured.wall_seconds
    prefix = measured.prefix_seconds
    return Run(name, dict(plan), lever, cpu, wall, prefix, len(accuracies), best)


def summarise(runs: list[Run], memory: dict[str, float]) -> list[dict[str, Any]]:
    """Each lever's seconds over all plans, and its accuracy against the naive evaluator's."""
    by_lever = {lever: [run for run in runs if run.lever == lever] for lever in LEVERS}
    cpu = {lever: sum(run.cpu_seconds for run in group) for lever, group in by_lever.items()}
    names = list(LEVERS)
    rows: list[dict[str, Any]] = []
    for position, lever in enumerate(names):
        pairs = zip(by_lever[lever], by_lever["naive"], strict=True)
        differences = [
            run.accuracy - naive.accuracy
            for run, naive in pairs
            if run.accuracy is not None and naive.accuracy is not None
        ]
        rows.append(
            {
                "lever": lever,
                "cpu_seconds": cpu[lever],
                "wall_seconds": sum(run.wall_seconds for run in by_lever[lever]),
                "prefix_seconds": sum(run.prefix_seconds for run in by_lever[lever]),
                "times_faster_than_before": cpu[names[max(position - 1, 0)]] / cpu[lever],
                "times_faster_than_naive": cpu["naive"] / cpu[lever],
                "accuracy_difference": statistics.fmean(differences) if differences else None,
                "accuracy_difference_sd": (
                    statistics.stdev(differences) if len(differences) > 1 else None
                ),
                "peak_memory_mib": memory[lever],
                "failed_runs": sum(run.accuracy is None for run in by_lever[lever]),
            }
        )
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    columns = [
        "lever, each with all above it",
        "CPU s",
        "wall s",
        "CPU s of these in frozen prefixes",
        "× the row above",
        "× naive",
        "accuracy − naive's, points",
        "peak memory, MiB",
    ]
    return markdown_table(columns, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    difference, spread = row["accuracy_difference"], row["accuracy_difference_sd"]
    accuracy = "" if difference is None else f"{100 * difference:+.1f}"
    accuracy += "" if spread is None else f" ± {100 * spread:.1f}"
    accuracy += f" ({row['failed_runs']} diverged)" if row["failed_runs"] else ""
    return [
        row["lever"],
        f"{row['cpu_seconds']:.1f}",
        f"{row['wall_seconds']:.1f}",
        "" if row["lever"] == "naive" else f"{row['prefix_seconds']:.1f}",
        f"{row['times_faster_than_before']:.2f}",
        f"{row['times_faster_than_naive']:.2f}",
        accuracy,
        f"{row['peak_memory_mib']:.0f}",
    ]


@click.command()
@click.option(
    "--backbone", default="efficientnet_lite0", show_default=True, help="As model.backbone."
)
@click.option("--weights", default="imagenet", show_default=True, help="imagenet, none or a file.")
@click.option("--image-size", default=64, show_default=True, type=click.IntRange(32))
@click.option("--images", default=128, show_default=True, help="To train, and as many to validate.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(2))
@click.option("--genomes", default=12, show_default=True, help="Of each of the two sets.")
@click.option(
    "--precision", default="auto", show_default=True, type=click.Choice(PRECISIONS), help="Lever 4."
)
@click.option("--feature-cache-mb", default=2000, show_default=True, help="Lever 5.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    backbone: str,
    weights: str,
    image_size: int,
    images: int,
    epochs: int,
    batch_size: int,
    genomes: int,
    precision: str,
    feature_cache_mb: int,
    json_file: Path | None,
) -> None:
    """Compare our evaluator with an ordinary one, lever by lever; Markdown tables.

    \b
    Examples:
      python benchmarks/evaluator.py
      python benchmarks/evaluator.py --backbone resnet50 --weights none --json resnet50.json
      python benchmarks/evaluator.py --images 32 --epochs 1 --genomes 2
    """
    torch.set_num_threads(1)
    settings = TrainingSettings(epochs, epochs, batch_size, BASE_LR)
    compute = compute_of(precision, backbone)
    blocks = list(block_sizes(backbone, 2))
    sets = {
        "random plans": draw_plans(blocks, genomes, 0),
        "early half frozen": draw_plans(blocks, genomes, len(blocks) // 2),
    }
    with tempfile.TemporaryDirectory() as work:
        setup = Setup(Path(work), backbone, weights, image_size, compute, feature_cache_mb * 10**6)
        write_image_files(prepare_digits(setup.prepared, image_size, images), setup.files)
        measured = {name: compare(name, plans, setup, settings) for name, plans in sets.items()}
    summary = {name: summarise(*comparison) for name, comparison in measured.items()}
    machine = describe_machine()
    options = options_of_command() | {"precision": compute.precision}
    click.echo(f"{one_line(machine)}\n{one_line(options)}")
    for name, rows in summary.items():
        click.echo(f"\n{genomes} plans, {name}:\n\n{as_markdown(rows)}")
    if json_file is not None:
        runs = [asdict(run) for runs, _ in measured.values() for run in runs]
        content = {"machine": machine, "options": options, "summary": summary, "runs": runs}
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
