"""What our evaluator saves on this device, lever by lever; see ``benchmarks/evaluator.py``."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.evaluator import Run, compare, draw_plans
from benchmarks.gpu.setting import Findings, Network, Row, Setting, say
from benchmarks.levers import LEVERS, Setup
from benchmarks.naive import write_image_files
from benchmarks.reporting import compute_of
from biotune.data import PreparedImages
from biotune.finetuning.backbones import block_sizes
from biotune.finetuning.training import TrainingSettings

CACHE_BYTES = 4 << 30
OF_A_CPU = "freed memory kept"
"""The lever that is glibc's; torch's allocator keeps a GPU's memory by itself."""


def run(setting: Setting) -> Findings:
    """Compare naive and ours on random plans, and on such whose early half is frozen."""
    findings = Findings()
    for network in setting.sizes.networks:
        with findings.part(network.name):
            rows = _compare(setting, network)
            findings.rows += rows
            findings.faults += [
                f"{network.name}: {row['diverged']} runs of {row['lever']!r} diverged"
                for row in rows
                if row["diverged"]
            ]
    findings.notes += [
        "Each lever has what those above it have. Seconds are the median of a training's wall "
        "time; ratios are the median over plans, each trained by all levers in turns. No run "
        "stops early. Every lever is in a process of its own.",
        "The naive evaluator's convolutions on a GPU are in tf32, torch's default, and so is all "
        "of the next two levers; `our layers, precision` is what `auto` chooses.",
    ]
    return findings


def _compare(setting: Setting, network: Network) -> list[Row]:
    network.require_weights()
    sizes = setting.sizes
    prepared = setting.prepared(network.image_size)
    levers = [name for name in LEVERS if not (setting.on_gpu and name == OF_A_CPU)]
    blocks = list(block_sizes(network.name, 2))
    kinds = {
        "random": draw_plans(blocks, sizes.plans, 0),
        "early half frozen": draw_plans(blocks, sizes.plans, len(blocks) // 2),
    }
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        compute = compute_of("auto", network.name, setting.device)
        work = Path(folder)
        setup = Setup(work, network.name, network.weights, network.image_size, compute, CACHE_BYTES)
        setup.prepared.symlink_to(prepared)
        setup.files.symlink_to(_image_files(setting, prepared))
        settings = TrainingSettings(sizes.epochs, sizes.epochs, network.batch_size, 1e-3)
        plans = [plan for some in kinds.values() for plan in some]
        runs, memory = compare(str(network), plans, setup, settings, levers)
    by_plan = [runs[i : i + len(levers)] for i in range(0, len(runs), len(levers))]
    rows: list[Row] = []
    for position, kind in enumerate(kinds):
        of_kind = by_plan[position * sizes.plans : (position + 1) * sizes.plans]
        rows += _rows(network, kind, levers, of_kind, memory)
    if OF_A_CPU not in levers:
        rows.append(
            {
                "network": network.name,
                "lever": OF_A_CPU,
                "plans": "all",
                "remark": "not applicable: glibc's; torch keeps a GPU's memory by itself",
            }
        )
    return rows


def _image_files(setting: Setting, prepared: Path) -> Path:
    """Folder of the files that the naive evaluator reads, for all networks of this image size."""
    files = setting.work / f"{prepared.name}-files"
    if not files.exists():
        say("image files for the naive evaluator")
        write_image_files(PreparedImages.open(prepared), files)
    return files


def _rows(
    network: Network,
    kind: str,
    levers: list[str],
    by_plan: list[list[Run]],
    memory: dict[str, float],
) -> list[Row]:
    """One row for each lever, in their order."""
    seconds = [{run.lever: run.wall_seconds for run in runs} for runs in by_plan]
    diverged = [run.lever for runs in by_plan for run in runs if run.accuracy is None]
    rows: list[Row] = []
    for lever, before in zip(levers, [levers[0], *levers], strict=False):
        rows.append(
            {
                "network": network.name,
                "plans": kind,
                "lever": lever,
                "s a training": statistics.median(of[lever] for of in seconds),
                "× row above": statistics.median(of[before] / of[lever] for of in seconds),
                "× naive": statistics.median(of["naive"] / of[lever] for of in seconds),
                "peak memory, MiB": round(memory[lever]),
                "diverged": diverged.count(lever),
            }
        )
    return rows
