"""What does tracking to MLflow add to a search?

A search of about a hundred candidates on the params file's images and network, with tracking to a
new SQLite store and with none, in turns; each from an empty evaluation store, in a process of its
own. A thread sends what is tracked while workers train: its CPU seconds are the work that may
delay them, and the search's last wait for it is the delay that is certain.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from benchmarks.reporting import describe_machine, markdown_table, one_line
from pipeline import prepare, search, tracking
from pipeline.params import Params, load_params


class Measured:
    """What the thread that sends to MLflow spends, and how long the search waits for it."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.stage_done = self.all_sent = 0.0

    def install(self) -> None:
        """Measure this process's tracking from now on."""
        tracking._start = self._sending(tracking._start)
        tracking.StageRun._try = self._sending(tracking.StageRun._try)  # type: ignore[method-assign]
        end = tracking.StageRun.end

        def noted(run: tracking.StageRun, status: str) -> None:
            self.stage_done = time.perf_counter()
            end(run, status)

        tracking.StageRun.end = noted  # type: ignore[assignment, method-assign]

    def _sending(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.cpu_seconds += time.thread_time() - begin
                self.all_sent = time.perf_counter()

        return run


def no_tracking(*_: object) -> Any:
    """Instead of reaching MLflow."""
    raise RuntimeError("not tracked, to compare")


def timed_search(params: Params, prepared: Path, folder: Path, tracked: bool) -> dict[str, Any]:
    """One search from empty stores; for a process of its own."""
    os.environ["BIOTUNE_HOME"] = str(folder / "home")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if not tracked:
        tracking._start = no_tracking  # type: ignore[assignment]
    measured = Measured()
    measured.install()
    names = ("best.json", "all.csv", "confirmed.csv", "metrics.json")
    begin = time.perf_counter()
    files = search.SearchFiles(*(folder / name for name in names))
    found = search.run(params, prepared=prepared, files=files)
    return {
        "tracked": tracked,
        "candidates": len(found.evaluated),
        "search seconds": time.perf_counter() - begin,
        "sending, CPU seconds": measured.cpu_seconds,
        "last wait, seconds": measured.all_sent - measured.stage_done,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds; shares are of an untracked search's wall time."""

    def median(tracked: bool, name: str) -> float:
        return float(np.median([one[name] for one in runs if one["tracked"] == tracked]))

    without = median(False, "search seconds")
    return {
        "wall, with tracking": median(True, "search seconds"),
        "wall, without": without,
        "share added": median(True, "search seconds") / without - 1,
        "sending, CPU seconds, share": median(True, "sending, CPU seconds") / without,
        "last wait, share": median(True, "last wait, seconds") / without,
    }


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--generations", default=7, show_default=True, help="7 make 111 candidates.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1))
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
        for number in range(2 * rounds):
            folder = Path(work) / str(number)
            folder.mkdir()
            with ProcessPoolExecutor(1, mp_context=spawn) as own_process:
                tracked = number % 4 in (0, 3)  # who comes first changes from round to round
                future = own_process.submit(timed_search, params, prepared, folder, tracked)
                runs.append(future.result())
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
