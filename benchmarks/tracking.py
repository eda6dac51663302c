"""What does tracking to MLflow add to a search, and what does a dead tracking server?

A search on the params file's images and network, with tracking to a new SQLite store, to a server
that is not there, and with none at all, in turns; each from an empty evaluation store, in a process
of its own. Afterwards what the dead server did not take is sent to a new store, and the genomes
there are counted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from benchmarks.reporting import describe_machine, markdown_table, one_line
from pipeline import prepare, search, sync
from pipeline.params import Params, load_params
from pipeline.tracking import stage_run
from pipeline.tracking.sender import Sender

MODES = ("off", "own file", "dead server")
DEAD = "http://127.0.0.1:9"


class NoTracking:
    """Takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@contextmanager
def no_tracking(*_: object) -> Iterator[Any]:
    """What stands in for :func:`pipeline.tracking.stage_run.tracked_stage`."""
    yield NoTracking()


class Measured:
    """What the thread that sends to MLflow spends, and how long the search waits for it."""

    def __init__(self) -> None:
        self.cpu_seconds = self.last_wait = 0.0

    def install(self) -> None:
        """Measure this process's tracking from now on."""
        sender: Any = Sender
        run, finish = sender.run, sender.finish

        def timed_run(thread: object) -> None:
            run(thread)
            self.cpu_seconds = time.thread_time()

        def timed_finish(thread: object, patience: float) -> None:
            begin = time.perf_counter()
            finish(thread, patience)
            self.last_wait = time.perf_counter() - begin

        sender.run, sender.finish = timed_run, timed_finish


def timed_search(params: Params, prepared: Path, folder: Path, mode: str) -> dict[str, Any]:
    """One search from empty stores; for a process of its own."""
    os.environ["BIOTUNE_HOME"] = str(folder / "home")
    os.environ["MLFLOW_TRACKING_URI"] = DEAD if mode == "dead server" else ""
    if mode == "off":
        vars(search)["tracked_stage"] = no_tracking
    measured = Measured()
    measured.install()
    names = ("best.json", "all.csv", "confirmed.csv", "metrics.json")
    begin = time.perf_counter()
    files = search.SearchFiles(*(folder / name for name in names))
    result = search.run(params, prepared=prepared, files=files)
    return {
        "tracking": mode,
        "candidates": len(result.evaluated),
        "search seconds": time.perf_counter() - begin,
        "sending, CPU seconds": measured.cpu_seconds,
        "last wait, seconds": measured.last_wait,
        "sent later": sent_later(folder / "home") if mode == "dead server" else "",
    }


def sent_later(home: Path) -> int:
    """Genomes in a new store, after what the dead server did not take is sent there."""
    from mlflow import MlflowClient

    os.environ["MLFLOW_TRACKING_URI"] = ""
    sync.run()
    client = MlflowClient(stage_run.tracking_uri(home))
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return len(client.search_runs(everywhere, "tags.`biotune.kind` = 'genome'", max_results=5000))


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds of what was measured, and of ratios within each round."""

    def seconds(mode: str, name: str) -> list[float]:
        return [run[name] for run in runs if run["tracking"] == mode]  # in the rounds' order

    def share(name: str, mode: str) -> float:
        """Share of an untracked search's wall time in the same round."""
        pairs = zip(seconds(mode, name), seconds("off", "search seconds"), strict=True)
        return float(np.median([spent / without for spent, without in pairs]))

    figures = {"wall, off": float(np.median(seconds("off", "search seconds")))}
    for mode in MODES[1:]:
        figures[f"wall, {mode}"] = float(np.median(seconds(mode, "search seconds")))
        figures[f"wall, {mode} ÷ off"] = share("search seconds", mode)
        figures[f"sending to {mode}, CPU share"] = share("sending, CPU seconds", mode)
        figures[f"last wait for {mode}, share"] = share("last wait, seconds", mode)
    return figures


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--generations", default=7, show_default=True, help="7 make 111 candidates.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(params_file: Path, generations: int, rounds: int, json_file: Path | None) -> None:
    """Measure what MLflow adds to a search's wall time.

    \b
    Examples:
      python benchmarks/tracking.py
      python benchmarks/tracking.py --generations 1 --rounds 1
    """
    params = load_params(params_file)
    size = {"population": 10, "elites": 3, "generations": generations}
    params = params.model_copy(update={"search": params.search.model_copy(update=size)})
    spawn = multiprocessing.get_context("spawn")
    runs = []
    with TemporaryDirectory() as work:
        prepared = Path(work) / "prepared"
        prepare.run(params, images=Path(params.prepare.path), out=prepared)
        for number in range(rounds):
            for place in range(len(MODES)):  # who comes first changes from round to round
                mode = MODES[(number + place) % len(MODES)]
                folder = Path(work) / f"{number}-{place}"
                folder.mkdir()
                with ProcessPoolExecutor(1, mp_context=spawn) as own_process:
                    future = own_process.submit(timed_search, params, prepared, folder, mode)
                    runs.append(future.result())
                click.echo(f"Round {number + 1}, {mode}: {runs[-1]['search seconds']:.1f} s")
    result = summary(runs)
    click.echo(f"Machine: {one_line(describe_machine())}\n")
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in runs]
    click.echo(markdown_table(list(runs[0]), cells) + "\n")
    medians = [(name, f"{value:.4g}") for name, value in result.items()]
    click.echo(markdown_table(["median", ""], medians))
    if json_file is not None:
        json_file.write_text(json.dumps({"runs": runs, "medians": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
