"""The whole way from prepared images to test accuracy, over several search seeds.

How good is what the default finds, and is it better than the best recipe, trained alike? One search
is an anecdote; this prints the table of all seeds, none left out.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import evaluate, finetune, prepare, search
from pipeline.params import Params, load_params


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--seeds", default=5, show_default=True, help="Search seeds 0, 1, … to run.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(".biotune/default_run"))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(params_file: Path, seeds: int, work: Path, json_file: Path | None) -> None:
    """Run search, finetune and evaluate for each seed, and print a Markdown table.

    Seeds share the evaluation store (BIOTUNE_HOME), so that a plan which two of them try is trained
    once: the seconds of a single seed are only meaningful with a fresh store for each.

    \b
    Examples:
      python benchmarks/default_run.py
      python benchmarks/default_run.py --seeds 10 --json results.json
    """
    params = load_params(params_file)
    prepared = work / "prepared"
    prepare.run(params, images=Path(params.prepare.path), out=prepared)
    rows = [
        _run_seed(_with_seed(params, seed), prepared, work / f"{seed}") for seed in range(seeds)
    ]
    _print_table(rows)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2))


def _with_seed(params: Params, seed: int) -> Params:
    return params.model_copy(update={"search": params.search.model_copy(update={"seed": seed})})


def _run_seed(params: Params, prepared: Path, folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    found = search.run(
        params,
        prepared=prepared,
        files=search.SearchFiles(
            *(folder / name for name in ("best.json", "all.csv", "confirmed.csv", "search.json"))
        ),
    )
    searched = time.perf_counter()
    model, baseline = folder / "model.safetensors", folder / "baseline.safetensors"
    finetune.run(
        params,
        prepared=prepared,
        best_plan=folder / "best.json",
        files=finetune.FinetuneFiles(model, baseline, folder / "curves.csv", folder / "tune.json"),
    )
    metrics = evaluate.run(
        params,
        prepared=prepared,
        model=model,
        baseline=baseline,
        files=evaluate.EvaluateFiles(
            *(folder / name for name in ("metrics.json", "predicted.csv", "confusion.csv", "c.csv"))
        ),
    )
    return {
        "search seed": params.search.seed,
        "winner": found.winner.name,
        "trained blocks": " ".join(found.winner.plan.trained_blocks),
        "confirmed validation": 1 - found.winner.evaluation.fitness,
        "test accuracy": metrics["accuracy"],
        "best recipe": metrics["best_recipe"]["name"],
        "recipe's test accuracy": metrics["best_recipe"]["accuracy"],
        "search s": searched - begin,
        "all s": time.perf_counter() - begin,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    mean = {
        key: float(np.mean([row[key] for row in rows])) if isinstance(value, float) else ""
        for key, value in rows[0].items()
    }
    click.echo(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in [*rows, mean | {"search seed": "mean"}]:
        cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
