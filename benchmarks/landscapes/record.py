"""Record a landscape: train many plans on a prepared folder, and keep what every run showed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks.held_out import scores_on_test
from benchmarks.landscapes.plans import Landscape, Run
from benchmarks.landscapes.recording import RecordedRun, Recording, open_recording
from benchmarks.reporting import PRECISIONS, compute_of, describe_machine, one_line
from benchmarks.trainers import running_options, start_worker, timed, trainer
from biotune.data import PreparedImages
from biotune.finetuning.backbones import block_sizes
from biotune.finetuning.hardware import instruction_set
from biotune.finetuning.training import TrainingSettings
from pipeline.trials.code_version import code_hash
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.worker import TrainerSetup

CACHE_BYTES = 1_000_000_000
"""Of each worker, for the features of frozen prefixes."""

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def train(run: Run, made_by: dict[str, str]) -> RecordedRun:
    """Train in this process, and test what was best."""
    result = timed(run.task, keep_best=True)
    scores = scores_on_test(result, trainer())
    if scores is None:
        return RecordedRun(run, result.curve, None, None, made_by)
    return RecordedRun(
        run=run,
        curve=result.curve,
        best_epoch=result.curve.best_epoch,
        test_score=scores.balanced_accuracy,
        made_by=made_by,
    )


def record(
    recording: Recording,
    landscape: Landscape,
    pool: ProcessPoolExecutor,
    workers: int,
    made_by: dict[str, str],
    may_start: Callable[[int], bool],
) -> None:
    """Do what the landscape asks for and the recording lacks, one row a run as each ends.

    Args:
        may_start: whether another run may be started after so many.
    """
    running: dict[Future[RecordedRun], Run] = {}
    started = 0
    with tqdm(unit="run", smoothing=0) as bar:
        while True:
            decided, later = landscape.runs(recording.curves)
            left = [run for run in decided if run.task not in recording.curves]
            bar.total = len(decided) + later
            if not started:
                bar.initial = bar.n = len(decided) - len(left)
            busy = set(running.values())
            waiting = iter([run for run in left if run not in busy])
            while len(running) < workers and may_start(started):
                run = next(waiting, None)
                if run is None:
                    break
                running[pool.submit(train, run, made_by)] = run
                started += 1
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                recording.append(future.result())
                bar.update()


@click.command()
@click.option("--prepared", required=True, type=FOLDER, help="Folder of the prepared images.")
@click.option(
    "--out", "file", required=True, type=FILE, help="CSV file to write, or to go on with."
)
@click.option("--backbone", default="efficientnet_lite0", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--epochs", default=8, show_default=True, type=click.IntRange(1))
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(PRECISIONS))
@click.option(
    "--uniform",
    default=40,
    show_default=True,
    type=click.IntRange(0),
    help="Plans of random genomes; a larger number later adds to the same file.",
)
@click.option(
    "--waves",
    default=2,
    show_default=True,
    type=click.IntRange(0),
    help="How often 20 plans are bred from the best so far; as --uniform.",
)
@running_options
@click.option("--runs", type=click.IntRange(1), help="Start at most so many runs.")
def main(
    prepared: Path,
    file: Path,
    backbone: str,
    weights: str,
    epochs: int,
    precision: str,
    uniform: int,
    waves: int,
    workers: int | None,
    nice: int,
    limit_seconds: float | None,
    runs: int | None,
) -> None:
    """Train some 250 plans on prepared images, and keep whole curves and test scores.

    One thread each, without early stopping. One row is written when a run ends; a recorder that was
    stopped or killed goes on when it is started again.

    \b
    Examples:
      python -m benchmarks.landscapes.record --prepared digits32 --out digits.csv
      python -m benchmarks.landscapes.record --prepared flowers64 --out flowers.csv --nice 19
      python -m benchmarks.landscapes.record --prepared digits32 --out digits-4.csv --epochs 4
    """
    images = PreparedImages.open(prepared)
    if not len(images.indices("test")):
        raise click.UsageError(f"{prepared} has no test images: prepare fewer of the others")
    landscape = Landscape(
        blocks=tuple(block_sizes(backbone, len(images.classes))),
        settings=TrainingSettings(epochs, patience=epochs, batch_size=32, base_lr=0.001),
        uniform=uniform,
        waves=waves,
    )
    compute = compute_of(precision, backbone)
    made_by = {
        "images": images.fingerprint[:12],
        "backbone": backbone,
        "weights": Path(weights).name,
        "precision": compute.precision,
        "torch": torch.__version__,
        "instruction_set": instruction_set("cpu"),
        "code": code_hash()[:12],
    }
    click.echo(f"Machine: {one_line(describe_machine())}")
    side_by_side = resolve_workers(workers or "auto", "cpu")
    setup = TrainerSetup(prepared, backbone, weights, compute, CACHE_BYTES, code_hash())
    end = time.monotonic() + (limit_seconds or float("inf"))
    with (
        open_recording(file, made_by) as recording,
        ProcessPoolExecutor(
            side_by_side,
            multiprocessing.get_context("spawn"),
            initializer=start_worker,
            initargs=(setup, nice),
        ) as pool,
    ):
        record(
            recording,
            landscape,
            pool,
            side_by_side,
            made_by,
            lambda started: time.monotonic() < end and (runs is None or started < runs),
        )


if __name__ == "__main__":
    main()
