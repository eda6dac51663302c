"""The whole way from prepared images to test accuracy, over several search seeds.

How good is what the default finds, and is it better than the best recipe, trained alike? One search
is an anecdote; this prints the table of all seeds, none left out.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.reporting import describe_machine, markdown_table, one_line
from benchmarks.textures import write_textures
from pipeline import evaluate, finetune, prepare, search
from pipeline.params import Params, load_params

VARIANTS = {
    "as given": {},
    "plain": {"surgical_scan": False},
    "scan": {"surgical_scan": True},
}
"""Changes to the ``search`` section of the params file."""


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--seeds", default=5, show_default=True, help="Search seeds 0, 1, … to run.")
@click.option("--data", type=click.Choice(["digits", "textures"]), default="digits")
@click.option(
    "--search",
    "variants",
    type=click.Choice(list(VARIANTS)),
    multiple=True,
    default=["as given"],
    show_default=True,
    help="Compare several, one option each.",
)
@click.option("--work", type=click.Path(path_type=Path), default=Path(".biotune/default_run"))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    params_file: Path,
    seeds: int,
    data: str,
    variants: tuple[str, ...],
    work: Path,
    json_file: Path | None,
) -> None:
    """Run search, finetune and evaluate for each seed, and print a Markdown table.

    Seeds share the evaluation store (BIOTUNE_HOME), so that a plan which two of them try is trained
    once: the seconds of a single seed are only meaningful with a fresh store for each. Epochs are
    what the search and its confirmation ask for, whether the store knew them or not.

    \b
    Examples:
      python benchmarks/default_run.py
      python benchmarks/default_run.py --seeds 10 --json results.json
      python benchmarks/default_run.py --data textures --search plain --search scan
    """
    params = _on(data, load_params(params_file), work)
    prepared = work / f"{data}_prepared"
    with redirect_stdout(sys.stderr):
        prepare.run(params, images=Path(params.prepare.path), out=prepared)
    rows = []
    for variant in variants:
        for seed in range(seeds):
            chosen = _with(params, {"seed": seed, **VARIANTS[variant]})
            with redirect_stdout(sys.stderr):  # the tables of each stage
                row = {"search": variant, **_run_seed(chosen, prepared, work / data / f"{seed}")}
            click.echo(str(row), err=True)
            rows.append(row)
            if json_file is not None:
                json_file.write_text(json.dumps(rows, indent=2))
    click.echo(f"Machine: {one_line(describe_machine())}\n")
    _print_table(rows)


def _on(data: str, params: Params, work: Path) -> Params:
    if data == "digits":
        return params
    folder = work / "textures"
    if not folder.exists():
        write_textures(folder)
    changes = {
        "source": "image_folder",
        "path": str(folder),
        "train_images": None,
        "validation_images": None,
    }
    return params.model_copy(update={"prepare": params.prepare.model_copy(update=changes)})


def _with(params: Params, changes: dict[str, Any]) -> Params:
    return params.model_copy(update={"search": params.search.model_copy(update=changes)})


def _run_seed(params: Params, prepared: Path, folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    result = search.run(
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
        files=finetune.FinetuneFiles(
            model, baseline, folder / "seeds", folder / "curves.csv", folder / "tune.json"
        ),
    )
    metrics = evaluate.run(
        params,
        prepared=prepared,
        models=evaluate.EvaluatedModels(model, baseline, folder / "seeds"),
        files=evaluate.EvaluateFiles(
            *(folder / name for name in ("metrics.json", "predicted.csv", "confusion.csv", "c.csv"))
        ),
    )
    return {
        "search seed": params.search.seed,
        "winner": result.winner.name,
        "trained blocks": " ".join(result.winner.plan.trained_blocks),
        "confirmed validation": 1 - result.winner.evaluation.fitness,
        "test accuracy": metrics["accuracy"],
        "best recipe": metrics["best_recipe"]["name"],
        "recipe's test accuracy": metrics["best_recipe"]["accuracy"],
        "epochs": sum(candidate.epochs for candidate in result.evaluated)
        + sum(len(r.curve.validation_score) for c in result.confirmations for r in c.runs),
        "search s": searched - begin,
        "all s": time.perf_counter() - begin,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    shown = []
    for variant in dict.fromkeys(row["search"] for row in rows):
        group = [row for row in rows if row["search"] == variant]
        mean = {
            key: np.mean([row[key] for row in group]) if isinstance(value, int | float) else ""
            for key, value in group[0].items()
        }
        shown += [*group, mean | {"search": variant, "search seed": "mean"}]
    cells = [
        [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in shown
    ]
    click.echo(markdown_table(list(rows[0]), cells))


if __name__ == "__main__":
    main()
