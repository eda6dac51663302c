"""``biotune finetune``: train the winner for good, and the best recipe beside it."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.artifacts import FILES
from stages.options import (
    OUT_FOLDER,
    ResumedCommand,
    dry_run_option,
    in_option,
    out_option,
    params_option,
    prepared_option,
)


@click.command("finetune", cls=ResumedCommand)
@params_option
@dry_run_option
@prepared_option
@in_option("--best-plan", FILES.best_plan, "File that the search stage wrote.")
@out_option("--model", FILES.model_weights, "the winner; its .json goes beside it")
@out_option("--baseline", FILES.baseline_weights, "the best recipe, likewise")
@click.option(
    "--seeds",
    type=OUT_FOLDER,
    default=FILES.seeds,
    show_default=True,
    help="Writes the weights of every run into this folder, replaced as a whole.",
)
@out_option("--curves", FILES.curves, "loss and accuracy of every epoch")
@out_option("--metrics", FILES.finetune_metrics, "validation score over the seeds")
def main(
    params_file: Path,
    dry_run: bool,
    prepared: Path,
    best_plan: Path,
    model: Path,
    baseline: Path,
    seeds: Path,
    curves: Path,
    metrics: Path,
) -> None:
    """Train the search's winner, and the best known recipe in the same way.

    Both are trained with every seed of finetune.training_seeds; the run that validates best is
    kept. The recipe is what the winner is held against in the evaluate stage.

    \b
    Examples:
      biotune finetune
      biotune finetune --dry-run
      biotune finetune --best-plan my_plan.json --model my_model.safetensors
    """
    from pipeline.finetune import FinetuneFiles, run
    from pipeline.params import load_params

    if dry_run:
        from pipeline import dry_run as dry

        dry.finetune(load_params(params_file), prepared, best_plan)
        return
    files = FinetuneFiles(
        model=model, baseline=baseline, seeds=seeds, curves=curves, metrics=metrics
    )
    run(load_params(params_file), prepared=prepared, best_plan=best_plan, files=files)


if __name__ == "__main__":
    main()
