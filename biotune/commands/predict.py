"""``biotune predict``: image files in, class names and probabilities out."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import click

from biotune.commands.command import Command
from biotune.commands.options import device_option, model_argument

if TYPE_CHECKING:
    from biotune.deployment.predictor import Prediction


@click.command(cls=Command)
@model_argument
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--top-k",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most probable classes to show of each image.",
)
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    type=click.Choice(["table", "csv", "json"]),
)
@click.option(
    "--batch-size",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images in memory at a time; those of one size are computed together.",
)
@device_option
@click.pass_context
def main(
    ctx: click.Context,
    model: Path,
    paths: tuple[str, ...],
    top_k: int,
    form: str,
    batch_size: int,
    device: str,
) -> None:
    """Classify images with an exported MODEL.

    PATHS are image files, folders (with all below them), globs in quotes, or - for one image on
    standard input. An image that cannot be used is reported with the reason; the exit code is 1 if
    none could be.

    CSV has the columns path, label, probability, then label_2, probability_2 and so on, and error.

    \b
    Examples:
      biotune predict model.onnx photo.jpg
      biotune predict model.onnx photos/ --top-k 1 --format csv > labels.csv
      biotune predict model.onnx 'photos/**/*.png' --format json
      cat photo.jpg | biotune predict model.onnx -
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be text
    from biotune.deployment.inputs import find_images
    from biotune.deployment.predictor import Predictor

    predictor = Predictor(model, device=device)
    images = find_images(paths, sys.stdin.buffer)
    top_k = min(top_k, len(predictor.classes))
    counts = {"classified": 0, "unusable": 0}

    def counted(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            counts["unusable" if prediction.error else "classified"] += 1
            yield prediction

    answers = predictor.predict(images, batch_size)
    with click.progressbar(
        answers,
        length=len(images),
        label="predict",
        file=sys.stderr,
        hidden=len(images) < 2 or not sys.stderr.isatty(),
    ) as shown:
        {"table": _table, "csv": _csv, "json": _json}[form](counted(shown), top_k)
    said = f"{counts['classified']} classified by {predictor.provider}"
    if counts["unusable"]:
        said += f", {counts['unusable']} could not be used"
    click.echo(said, err=True)
    ctx.exit(0 if counts["classified"] else 1)


def _columns(top_k: int) -> list[str]:
    further = [f"{name}_{k}" for k in range(2, top_k + 1) for name in ("label", "probability")]
    return ["path", "label", "probability", *further, "error"]


def _csv(predictions: Iterable[Prediction], top_k: int) -> None:
    columns = _columns(top_k)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for prediction in predictions:
        ranked = [f"{p:.6f}" if i else n for n, p in prediction.ranked[:top_k] for i in (0, 1)]
        empty = [""] * (len(columns) - 2 - len(ranked))
        writer.writerow([prediction.source, *ranked, *empty, prediction.error])


def _json(predictions: Iterable[Prediction], top_k: int) -> None:
    rows = []
    for prediction in predictions:
        # JSON is text: of a name that is not, the bytes are shown.
        path = prediction.source.encode("utf-8", "backslashreplace").decode()
        row: dict[str, object] = {"path": path}
        if prediction.error:
            row["error"] = prediction.error
        else:
            (row["label"], row["probability"]), *_ = prediction.ranked
            row["classes"] = [{"label": n, "probability": p} for n, p in prediction.ranked[:top_k]]
        rows.append(row)
    click.echo(json.dumps(rows, indent=2, ensure_ascii=False))


def _table(predictions: Iterable[Prediction], top_k: int) -> None:
    rows = [
        (
            prediction.source.replace("\n", "\\n"),
            prediction.error
            or "   ".join(f"{name} {100 * p:.1f} %" for name, p in prediction.ranked[:top_k]),
        )
        for prediction in predictions
    ]
    width = max((len(path) for path, _ in rows), default=0)
    for path, said in rows:
        click.echo(f"{path:<{width}}  {said}")
