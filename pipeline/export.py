"""The export stage: the winner as a folder to deploy, with the proof that it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from biotune.data.prepared import PreparedImages, describe_file
from biotune.deployment.bundle import MODEL_FILE, VERIFICATION_FILE
from biotune.deployment.export import export_onnx
from biotune.deployment.predictor import Predictor
from biotune.finetuning.backbones import weights_identity
from biotune.finetuning.checkpoints import load_model_of
from biotune.finetuning.compute import keep_freed_memory
from biotune.finetuning.feature_cache import cut_of
from biotune.finetuning.inference import Trained
from pipeline.artifacts import (
    check_writable,
    folder_written_beside,
    read_json,
    read_rows,
    write_json,
)
from pipeline.home import biotune_home
from pipeline.params import Params
from pipeline.prepare import source_of
from pipeline.proof.agreement import (
    SIZES,
    Answers,
    ask,
    by_format,
    check_agreement,
    proof_figures,
    worst,
)
from pipeline.proof.bundle import complete_bundle
from pipeline.proof.export_formats import FORMATS, add_smaller
from pipeline.proof.model_card import CardFacts, card_template, model_card
from pipeline.proof.originals import Originals, thumbnail
from pipeline.reporting.console import percent, print_table
from pipeline.tracking.origin import lineage
from pipeline.tracking.registry import Registered, write_mlflow_model
from pipeline.tracking.stage_run import StageRun, tracked_stage
from pipeline.trials.side_by_side import resolve_workers

LOCK_FILE: Final = Path(__file__).parents[1] / "requirements.lock"


@dataclass(frozen=True, kw_only=True)
class ExportInputs:
    """What earlier stages wrote.

    Attributes:
        prepared: folder of the prepare stage.
        model: the ``.safetensors`` of the finetune stage; its ``.json`` is beside it.
        metrics: ``metrics.json`` of the evaluate stage.
        classes: its ``classes.csv``.
        search_metrics: ``metrics.json`` of the search stage.
    """

    prepared: Path
    model: Path
    metrics: Path
    classes: Path
    search_metrics: Path


@dataclass(frozen=True, kw_only=True)
class ExportFiles:
    """Where the export stage writes.

    Attributes:
        bundle: folder to deploy; see :mod:`biotune.deployment.bundle`.
        metrics: the figures of the proof, for DVC.
        lineage: what the bundle came from that is no function of the inputs.
    """

    bundle: Path
    metrics: Path
    lineage: Path


def run(
    params: Params, *, inputs: ExportInputs, images_path: Path, files: ExportFiles
) -> dict[str, Any]:
    """Export the fine-tuned model, and prove on every original test image that it is the same.

    Args:
        params: all are used or written down, of ``runtime`` the number of workers.
        inputs: of earlier stages.
        images_path: where the original images are.
        files: to write; the folder only if the model passes.

    Returns:
        The figures that ``verification.json`` holds.

    Raises:
        ValueError, OSError: for inputs that cannot be used.
        ExportMismatchError: below ``export.min_label_agreement``.
        MissingOriginalError: if a test image is not there any more.
    """
    home = biotune_home()
    keep_freed_memory()
    images = PreparedImages.open(inputs.prepared)
    images.check_files()
    backbone, card = load_model_of(inputs.model, images)
    evaluated = read_json(inputs.metrics, "evaluate")
    described = _described(params, inputs, images, evaluated)
    facts = CardFacts(
        model=card,
        hashes=described["hashes"],
        evaluated=evaluated,
        per_class=read_rows(inputs.classes, "evaluate"),
        searched=read_json(inputs.search_metrics, "search"),
        images=images,
    )
    template = card_template()
    originals = Originals(source_of(params, images_path), images)
    check_writable(files.bundle, files.metrics, files.lineage)
    with tracked_stage("export", params, images.fingerprint, home) as tracked:
        with folder_written_beside(files.bundle, VERIFICATION_FILE) as folder:
            background = params.prepare.background
            model = folder / MODEL_FILE
            export_onnx(backbone, card, model, background=background, described=described)
            smaller = add_smaller(params.export, folder, images)
            predictors = _predictors(folder)
            exported = Trained(backbone, cut_of(backbone, card.plan))
            answers, compared = _verify(params, predictors, exported, images, originals)
            figures = {
                "test_images": len(originals),
                "min_label_agreement": params.export.min_label_agreement,
                **compared["fp32"],
                **{name: {**smaller[name], **compared.get(name, {})} for name in smaller},
            }
            write_json(files.metrics, figures)
            check_agreement(figures, params.export, files.metrics)
            text = model_card(template, facts, figures)
            complete_bundle(folder, predictors, answers.samples, figures, text)
        tracked.metrics(figures)
        _track(tracked, params, files.bundle, described, answers, originals)
        model_file = describe_file(files.bundle / MODEL_FILE)
        write_json(files.lineage, lineage(described, model_file, params, tracked))
    _print_summary(files.bundle, figures)
    return figures


def _described(
    params: Params, inputs: ExportInputs, images: PreparedImages, evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model says of where it came from; a function of the inputs alone."""
    figures = (
        *("accuracy", "accuracy_interval_95", "balanced_accuracy", "f1_macro"),
        *("expected_calibration_error", "test_images"),
    )
    used = params.model_dump(mode="json", exclude={"runtime", "tracking"})
    return {
        "metrics": {name: evaluated[name] for name in figures},
        "hashes": {
            "data": images.fingerprint,
            "params": hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest(),
            "pretrained_weights": weights_identity(params.model.backbone, params.model.weights),
            "weights": describe_file(inputs.model)["sha256"],
            "lock": describe_file(LOCK_FILE)["sha256"],
        },
    }


def _predictors(folder: Path) -> dict[str, Predictor]:
    """Format → every model that is written, computing on one thread."""
    files = {name: folder / form.file for name, form in FORMATS.items()}
    return {
        name: Predictor(file, device="cpu", threads=1)
        for name, file in files.items()
        if file.exists()
    }


def _verify(
    params: Params,
    predictors: Mapping[str, Predictor],
    exported: Trained,
    images: PreparedImages,
    originals: Originals,
) -> tuple[Answers, dict[str, dict[str, Any]]]:
    """What each model says, and its figures against torch."""
    workers = resolve_workers(params.runtime.workers, "cpu")
    with tqdm(total=len(originals), desc="verify", unit="image") as progress:
        answers = ask(predictors, exported.backbone, originals, images, workers, progress.update)
    return answers, proof_figures(answers, exported, images, originals, workers)


def _track(
    tracked: StageRun,
    params: Params,
    bundle: Path,
    described: Mapping[str, Any],
    answers: Answers,
    originals: Originals,
) -> None:
    tracked.artifacts(file for file in sorted(bundle.iterdir()) if file.is_file())
    predicted = answers.probabilities["fp32"][FORMATS["fp32"].batch_sizes[0]].argmax(axis=1)
    right = answers.in_order((predicted == originals.labels).tolist())
    with TemporaryDirectory() as scratch:
        example = thumbnail(answers.samples[0], 32)[np.newaxis]
        write_mlflow_model(bundle / MODEL_FILE, Path(scratch, "model"), example)
        registered = Registered(
            name=params.tracking.registered_model,
            described=described,
            test=answers.test,
            right=right,
        )
        tracked.model(Path(scratch, "model"), registered)


def _print_summary(bundle: Path, figures: Mapping[str, Any]) -> None:
    rows = []
    for name, of_format in by_format(figures).items():
        for size in ("original", *SIZES):
            agreement = worst(of_format if size == "original" else of_format.get(size, {}))
            if agreement is not None:
                same = percent(agreement.label_agreement, 2)
                label = f"{FORMATS[name].file}, {size.replace('_', ' ')}"
                rows.append((label, same, f"{agreement.largest_difference:.1e}"))
    title = f"{bundle} against torch, {figures['test_images']} original test images"
    print_table(title, ["", "same label", "largest difference in probability"], rows)
