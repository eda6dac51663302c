"""Two workers of one thread each, or one worker of two? And is the search the same for both?

First the same training runs in three ways, round after round: one process with one thread, one
process with a thread per core, and a worker process per core with one thread each. Then, with
``--searches``, a whole search with one worker and with one per core, each from an empty store: wall
seconds, and whether the best plan and the evaluations table are the same to the byte.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from benchmarks.reporting import markdown_table
from biotune.evolution import Genome, decode
from biotune.finetuning.backbones import block_sizes
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings
from biotune.images import DigitsSource, prepare_images
from pipeline import search
from pipeline.params import Params, load_params
from pipeline.trials.jobs import Job
from pipeline.trials.machine import resolve_compute
from pipeline.trials.pool import WorkerPool
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.worker import TrainerSetup

CACHE_BYTES = 1_000_000_000


def tasks(params: Params, count: int) -> list[TrainingTask]:
    """Runs of random plans, two epochs each."""
    rng = np.random.default_rng(0)
    blocks = list(block_sizes(params.model.backbone, 10))
    settings = TrainingSettings(2, 2, params.search.batch_size, params.search.base_lr)
    genomes = [Genome.random_viable(rng, len(blocks)) for _ in range(count)]
    return [TrainingTask(decode(genome, blocks), 0, settings) for genome in genomes]


def in_process(trainer: Trainer, threads: int, planned: list[TrainingTask]) -> float:
    """Wall seconds of the tasks, one after another."""
    torch.set_num_threads(threads)
    trainer.cache.clear()
    begin = time.perf_counter()
    for task in planned:
        trainer.train(task)
    return time.perf_counter() - begin


def in_workers(pool: WorkerPool, planned: list[TrainingTask]) -> float:
    """Wall seconds of the tasks, side by side. Before that each worker is started."""
    begin = time.perf_counter()
    for task in planned:
        pool.submit(Job(task))
    curves = 0
    while curves < len(planned):
        curves += sum(outcome.curve is not None for outcome in pool.wait())
    return time.perf_counter() - begin


def compare_threads(
    params: Params, prepared: Path, compute: Compute, rounds: int, count: int
) -> list[dict[str, Any]]:
    cores = resolve_workers("auto", "cpu")
    model, planned = params.model, tasks(params, count)
    trainer = Trainer(prepared, model.backbone, model.weights, compute, CACHE_BYTES)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        # A pool of each round's own, because the workers' caches cannot be emptied from here.
        setup = TrainerSetup(prepared, model.backbone, model.weights, compute, CACHE_BYTES)
        with WorkerPool(setup, cores) as pool:
            in_workers(pool, planned[:cores])  # starts them, and fills hardly anything
            for threads in (1, cores):
                one_process = in_process(trainer, threads, planned)
                seconds.setdefault(f"1 process x {threads} threads", []).append(one_process)
            side_by_side = in_workers(pool, planned)
            seconds.setdefault(f"{cores} workers x 1 thread", []).append(side_by_side)
    slowest = float(np.median(seconds["1 process x 1 threads"]))
    return [
        {
            "way": way,
            "seconds": float(np.median(measured)),
            "times as fast": slowest / float(np.median(measured)),
        }
        for way, measured in seconds.items()
    ]


def timed_search(params: Params, prepared: Path, workers: int, folder: Path) -> dict[str, Any]:
    """A whole search from an empty store."""
    runtime = params.runtime.model_copy(update={"workers": workers})
    params = params.model_copy(update={"runtime": runtime})
    os.environ["BIOTUNE_HOME"] = str(folder / "home")
    names = ("best_plan.json", "evaluations.csv", "confirmations.csv", "metrics.json")
    files = [folder / name for name in names]
    begin = time.perf_counter()
    search.run(params, prepared=prepared, files=search.SearchFiles(*files))
    return {
        "workers": workers,
        "seconds": time.perf_counter() - begin,
        "files": [file.read_bytes().hex() for file in files],
    }


def compare_searches(params: Params, prepared: Path, work: Path) -> list[dict[str, Any]]:
    """Compare a search by one worker with one by a worker per core."""
    counts = (1, resolve_workers("auto", "cpu"))
    runs = [timed_search(params, prepared, count, work / f"workers{count}") for count in counts]
    return [
        {
            "workers": run["workers"],
            "seconds": run["seconds"],
            "times as fast": runs[0]["seconds"] / run["seconds"],
            "same files": run["files"] == runs[0]["files"],
        }
        for run in runs
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    click.echo("\n" + markdown_table(list(rows[0]), cells))


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--runs", default=12, show_default=True, type=click.IntRange(2))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--searches", is_flag=True, help="Also compare whole searches.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(params_file: Path, runs: int, rounds: int, searches: bool, json_file: Path | None) -> None:
    """Compare workers with threads on the default's digits, and print Markdown tables.

    \b
    Examples:
      python benchmarks/workers.py
      python benchmarks/workers.py --rounds 1 --searches --json workers.json
    """
    keep_freed_memory()
    params = load_params(params_file)
    with TemporaryDirectory() as work:
        prepared = Path(work) / "prepared"
        section = params.prepare
        prepare_images(
            DigitsSource(),
            prepared,
            image_size=section.image_size,
            train_images=section.train_images,
            validation_images=section.validation_images,
            seed=section.seed,
        )
        compute = resolve_compute(params.runtime, params.model.backbone)
        tables = {"threads": compare_threads(params, prepared, compute, rounds, runs)}
        if searches:
            tables["searches"] = compare_searches(params, prepared, Path(work))
    for rows in tables.values():
        print_table(rows)
    if json_file is not None:
        json_file.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
