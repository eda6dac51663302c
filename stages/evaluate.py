"""``biotune evaluate``: how good the final model is, on images that no choice was made by."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.artifacts import FILES
from stages.options import (
    FOLDER,
    ContainedCommand,
    dry_run_option,
    in_option,
    out_option,
    params_option,
    prepared_option,
)


@click.command("evaluate", cls=ContainedCommand)
@params_option
@dry_run_option
@prepared_option
@in_option("--model", FILES.model_weights, "The winner, from the finetune stage.")
@in_option(
    "--baseline",
    FILES.baseline_weights,
    "The best recipe, from the finetune stage.",
)
@click.option(
    "--seeds",
    type=FOLDER,
    default=FILES.seeds,
    show_default=True,
    help="The weights of every run, from the finetune stage.",
)
@out_option("--metrics", FILES.metrics, "every figure")
@out_option("--predictions", FILES.predictions, "one row per test image")
@out_option("--confusion", FILES.confusion, "actual and predicted classes")
@out_option("--classes", FILES.classes, "precision and recall per class")
def main(
    params_file: Path,
    dry_run: bool,
    prepared: Path,
    model: Path,
    baseline: Path,
    seeds: Path,
    metrics: Path,
    predictions: Path,
    confusion: Path,
    classes: Path,
) -> None:
    """Measure the final model, and the best recipe beside it, on the test images.

    \b
    Examples:
      biotune evaluate
      biotune evaluate --dry-run
      biotune evaluate --model my_model.safetensors --metrics /tmp/metrics.json
    """
    from pipeline.evaluate import EvaluatedModels, EvaluateFiles, run
    from pipeline.params import load_params

    if dry_run:
        from pipeline import dry_run as dry

        dry.predict("evaluate", load_params(params_file), prepared, [model, baseline])
        return
    files = EvaluateFiles(
        metrics=metrics, predictions=predictions, confusion=confusion, classes=classes
    )
    models = EvaluatedModels(winner=model, baseline=baseline, seeds=seeds)
    run(load_params(params_file), prepared=prepared, models=models, files=files)


if __name__ == "__main__":
    main()
