"""``biotune export``: the final model as a folder to deploy, and the proof that it is the same."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.artifacts import FILES
from stages.options import (
    FOLDER,
    OUT_FOLDER,
    ContainedCommand,
    dry_run_option,
    in_option,
    out_option,
    params_option,
    prepared_option,
)


@click.command("export", cls=ContainedCommand)
@params_option
@dry_run_option
@prepared_option
@in_option(
    "--model",
    FILES.model_weights,
    "The model to export, from the finetune stage.",
)
@in_option("--evaluation", FILES.metrics, "Of the evaluate stage.")
@in_option("--classes", FILES.classes, "Of the evaluate stage.")
@in_option("--search-metrics", FILES.search_metrics, "Of the search stage.")
@click.option(
    "--images", type=FOLDER, help="Where the original images are.  [default: prepare.path]"
)
@click.option(
    "--bundle",
    type=OUT_FOLDER,
    default=FILES.bundle,
    show_default=True,
    help="Writes the folder to deploy, replaced as a whole: models, card and proof.",
)
@out_option("--metrics", FILES.export_metrics, "the figures of the proof")
@out_option("--lineage", FILES.lineage, "commit, MLflow run, image and packages")
def main(
    params_file: Path,
    dry_run: bool,
    prepared: Path,
    model: Path,
    evaluation: Path,
    classes: Path,
    search_metrics: Path,
    images: Path | None,
    bundle: Path,
    metrics: Path,
    lineage: Path,
) -> None:
    """Export the final model, and compare it with torch on every original test image.

    The folder holds model.onnx (raw pixels of any size in, probabilities out), its smaller formats
    if they are accurate enough (model.int8.onnx …), card.md, verification.json, labels.json,
    samples for `biotune verify`, and a model repository for Triton. The model becomes a version in
    MLflow's registry, and the champion if it is better than the one that is.

    Fails, and writes no model, if fewer labels agree than export.min_label_agreement asks for.

    \b
    Examples:
      biotune export
      biotune export --dry-run
      biotune export --model my_model.safetensors --bundle /tmp/my_model
    """
    from pipeline.export import ExportFiles, ExportInputs, run
    from pipeline.params import load_params

    params = load_params(params_file)
    if dry_run:
        from pipeline import dry_run as dry

        dry.predict("export", params, prepared, [model])
        return
    inputs = ExportInputs(
        prepared=prepared,
        model=model,
        metrics=evaluation,
        classes=classes,
        search_metrics=search_metrics,
    )
    files = ExportFiles(bundle=bundle, metrics=metrics, lineage=lineage)
    run(params, inputs=inputs, images_path=images or Path(params.prepare.path), files=files)


if __name__ == "__main__":
    main()
