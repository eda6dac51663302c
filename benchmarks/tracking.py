"""What does tracking to MLflow cost a search?

Runs a search of about a hundred candidates from an empty store, on the params file's images and
network, tracked to a fresh SQLite store, and adds up the wall time that the main process spends in
calls to MLflow, from the stage's first to its last. Workers go on training meanwhile, so this
is an upper bound of what a search waits.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.reporting import describe_machine, markdown_table, one_line
from pipeline import prepare, search, tracking
from pipeline.params import load_params


@contextmanager
def timed_calls() -> Iterator[list[float]]:
    """The seconds of every call to MLflow while a search runs."""
    seconds: list[float] = []
    start, send = tracking._start, tracking.StageRun._send

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                seconds.append(time.perf_counter() - begin)

        return run

    tracking._start = timed(start)
    tracking.StageRun._send = timed(send)  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        tracking._start, tracking.StageRun._send = start, send  # type: ignore[method-assign]


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--generations", default=7, show_default=True, help="7 make 101 candidates.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(params_file: Path, generations: int, json_file: Path | None) -> None:
    """Measure the share of a search's wall time that MLflow takes.

    \b
    Examples:
      python benchmarks/tracking.py
      python benchmarks/tracking.py --generations 1
    """
    params = load_params(params_file)
    size = {"population": 10, "elites": 3, "generations": generations}
    params = params.model_copy(update={"search": params.search.model_copy(update=size)})
    with TemporaryDirectory() as folder, timed_calls() as calls:
        work = Path(folder)
        os.environ["BIOTUNE_HOME"] = str(work / "home")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        prepare.run(params, images=Path(params.prepare.path), out=work / "prepared")
        names = ("best.json", "all.csv", "confirmed.csv", "metrics.json")
        begin = time.perf_counter()
        found = search.run(
            params,
            prepared=work / "prepared",
            files=search.SearchFiles(*(work / name for name in names)),
        )
        wall = time.perf_counter() - begin
    result = {
        "candidates": len(found.evaluated),
        "search seconds": wall,
        "calls to MLflow": len(calls),
        "seconds in them": sum(calls),
        "share": sum(calls) / wall,
    }
    cells = [(n, f"{v:.3f}" if isinstance(v, float) else str(v)) for n, v in result.items()]
    click.echo(f"Machine: {one_line(describe_machine())}\n")
    click.echo(markdown_table(["tracking", ""], cells))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
