"""How long does a search take to hold a plan that is good on images that it never saw?

Reads searches from the MLflow databases of one or more homes (BIOTUNE_HOME), so that searches of
different versions of BioTune can be set side by side. At each moment a search holds the plan with
the best fitness so far. What such a plan is worth is measured here, alike for all: it is trained
from five fresh seeds, the best epoch by validation, and scored on the test split.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from tqdm import tqdm

from benchmarks.held_out import held_out_accuracy
from benchmarks.reporting import describe_machine, markdown_table, one_line
from biotune.finetuning.compute import keep_freed_memory
from biotune.finetuning.fitness import Trainer
from biotune.plan import FineTunePlan
from pipeline.params import load_params
from pipeline.trials.machine import resolve_compute, training_settings

CACHE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Held:
    """A plan that a search held as its best from a moment on.

    Attributes:
        seconds: since the search began.
        fitness: as the search saw it.
        plan: what it was.
    """

    seconds: float
    fitness: float
    plan: FineTunePlan


def searches(home: Path) -> list[tuple[str, list[Held]]]:
    """Every finished search of a home: when it began, and what it held from when on."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    stages = client.search_runs(experiments, "tags.`biotune.stage` = 'search'")
    finished = []
    for stage in sorted(stages, key=lambda run: run.info.start_time):
        if stage.info.status == "FINISHED":
            children = client.search_runs(
                experiments, f"tags.`mlflow.parentRunId` = '{stage.info.run_id}'", max_results=5000
            )
            finished.append((stage.info.run_id, _held(stage, children)))
    return finished


def _held(stage: Run, children: list[Run]) -> list[Held]:
    genomes = [run for run in children if run.data.tags.get("biotune.outcome") == "finished"]
    held: list[Held] = []
    for run in sorted(genomes, key=lambda run: run.info.end_time):
        fitness = run.data.metrics["fitness"]
        if not held or fitness < held[-1].fitness:
            seconds = (run.info.end_time - stage.info.start_time) / 1000
            held.append(Held(seconds, fitness, _plan(run)))
    return held


def _plan(run: Run) -> FineTunePlan:
    prefix = "lr_multiplier."
    rates = {k.removeprefix(prefix): v for k, v in run.data.params.items() if k.startswith(prefix)}
    return FineTunePlan({block: float(rate) or None for block, rate in rates.items()})


@click.command()
@click.argument("homes", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--prepared", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--accuracy", default=0.965, show_default=True, type=click.FloatRange(0, 1))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    homes: tuple[Path, ...],
    prepared: Path,
    params_file: Path,
    accuracy: float,
    json_file: Path | None,
) -> None:
    """Print when each search first held a plan of this test accuracy.

    \b
    Examples:
      python benchmarks/time_to_accuracy.py .biotune --prepared artifacts/prepared
      python benchmarks/time_to_accuracy.py old/.biotune new/.biotune --prepared artifacts/prepared
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    params = load_params(params_file)
    compute = resolve_compute(params.runtime, params.model.backbone)
    trainer = Trainer(prepared, params.model.backbone, params.model.weights, compute, CACHE_BYTES)
    settings = training_settings(params.search)
    accuracies: dict[FineTunePlan, float] = {}
    rows: list[dict[str, Any]] = []
    finished = [(home, run, held) for home in homes for run, held in searches(home)]
    for home, run, held in tqdm(finished, unit="search"):
        for best in held:
            if best.plan not in accuracies:
                # MLflow keeps no order of the blocks.
                plan = FineTunePlan({block: best.plan[block] for block in trainer.backbone.blocks})
                accuracies[best.plan] = held_out_accuracy(plan, trainer, settings)
            row = {"home": str(home), "search": run[:8], "seconds": round(best.seconds)}
            rows.append({**row, "fitness": best.fitness, "test accuracy": accuracies[best.plan]})
            if accuracies[best.plan] >= accuracy:
                break
    cells = [
        [f"{v:.4f}" if name in ("fitness", "test accuracy") else str(v) for name, v in row.items()]
        for row in rows
    ]
    click.echo(f"Machine: {one_line(describe_machine())}\n")
    click.echo(markdown_table(["home", "search", "seconds", "fitness", "test accuracy"], cells))
    click.echo(
        f"\nThe last row of a search is the first plan of at least {accuracy}, if it has one."
    )
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
