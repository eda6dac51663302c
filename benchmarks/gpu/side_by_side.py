"""Several trainings at once on one device, each in a process of its own: images a second."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.gpu.setting import Findings, Network, Row, Setting, say
from benchmarks.processes import forked_after
from benchmarks.reporting import compute_of
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan

ROUNDS = 2
EPOCHS = 2


def run(setting: Setting) -> Findings:
    """Train with one process, two, and so on, in turns."""
    findings = Findings()
    context = forked_after(__name__, "timm")
    with ExitStack() as stack:
        workers = [
            stack.enter_context(ProcessPoolExecutor(1, context))
            for _ in range(max(setting.sizes.trainings))
        ]
        for network in setting.sizes.side_by_side:
            with findings.part(network.name):
                findings.rows += _measure(setting, network, workers)
    findings.notes.append(
        f"Each training is a call of `Trainer.train`: {EPOCHS} epochs of full fine-tuning, with "
        "validation, all in it. Images a second are those trained on, of all processes together, "
        f"from the first start to the last end; medians of {ROUNDS} rounds."
    )
    return findings


def _measure(setting: Setting, network: Network, workers: list[ProcessPoolExecutor]) -> list[Row]:
    prepared = setting.prepared(network.image_size)
    compute = compute_of("auto", network.name, setting.device)
    say(f"{network}: starting {len(workers)} processes")
    for started in [worker.submit(_start, prepared, network, compute) for worker in workers]:
        started.result()
    rates: dict[int, list[float]] = {count: [] for count in setting.sizes.trainings}
    peaks: dict[int, float] = {}
    for turn in range(ROUNDS):
        for count in sorted(rates, reverse=bool(turn % 2)):
            say(f"{network}: {count} side by side")
            runs = [worker.submit(_train, network.batch_size) for worker in workers[:count]]
            begins, ends, memory = zip(*(run.result() for run in runs), strict=True)
            images = setting.sizes.images * EPOCHS * count
            rates[count].append(images / (max(ends) - min(begins)))
            peaks[count] = sum(memory)
    rows: list[Row] = []
    for count, measured in rates.items():
        alone = rates[min(rates)]
        rows.append(
            {
                "network": str(network),
                "precision": compute.precision,
                "side by side": count,
                "images a second": statistics.median(measured),
                "× one alone": statistics.median(
                    many / single for many, single in zip(measured, alone, strict=True)
                ),
                "peak memory of all, MiB": round(peaks[count]) if setting.on_gpu else None,
            }
        )
    return rows


_trainers: list[Trainer] = []


def _start(prepared: Path, network: Network, compute: Compute) -> None:
    """In a process: make its trainer, in the place of another network's, and run it once."""
    torch.set_num_threads(1)
    keep_freed_memory()
    _trainers.clear()
    if compute.device_type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(compute.device)
    _trainers.append(Trainer(prepared, network.name, network.weights, compute))
    _train(network.batch_size, epochs=1)


def _train(batch_size: int, epochs: int = EPOCHS) -> tuple[float, float, float]:
    """In a process: train; when it began and ended, on the machine's clock, and MiB at most."""
    trainer = _trainers[0]
    plan = FineTunePlan(dict.fromkeys(trainer.backbone.blocks, 1.0))
    settings = TrainingSettings(epochs, epochs, batch_size, 1e-3)
    begin = time.monotonic()
    result = trainer.train(TrainingTask(plan, 0, settings))
    end = time.monotonic()
    if result.curve.outcome != "finished":
        said = f": {result.out_of_memory[0]}" if result.out_of_memory else ""
        raise RuntimeError(f"a training ended as {result.curve.outcome}{said}")
    on_gpu = trainer.compute.device_type == "cuda"
    memory = torch.cuda.max_memory_reserved(trainer.compute.device) if on_gpu else 0
    return begin, end, memory / 2**20
