"""``biotune export``: the final model as one ONNX file, and the proof that it is the same."""

from __future__ import annotations

from pathlib import Path

import click

from stages.options import (
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
    "--model", "artifacts/model/model.safetensors", "The model to export, from the finetune stage."
)
@out_option("--onnx", "artifacts/deploy/model.onnx", "the model: raw pixels in, probabilities out")
@out_option("--labels", "artifacts/deploy/labels.json", "class names in the order of the outputs")
@out_option("--verification", "artifacts/deploy/verification.json", "how it compares with torch")
def main(
    params_file: Path,
    dry_run: bool,
    prepared: Path,
    model: Path,
    onnx: Path,
    labels: Path,
    verification: Path,
) -> None:
    """Export the final model to ONNX, and compare it with torch on every test image.

    Fails, and writes no model, if fewer labels agree than export.min_label_agreement asks for.

    \b
    Examples:
      biotune export
      biotune export --dry-run
      biotune export --model my_model.safetensors --onnx /tmp/my_model.onnx
    """
    from pipeline.export import ExportFiles, run
    from pipeline.params import load_params

    if dry_run:
        from pipeline import dry_run as dry

        dry.predict("export", load_params(params_file), prepared, [model])
        return
    files = ExportFiles(onnx, labels, verification)
    run(load_params(params_file), prepared=prepared, model=model, files=files)


if __name__ == "__main__":
    main()
