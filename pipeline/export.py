"""The export stage: the winner as a folder to deploy, with the proof that it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from biotune.data.prepared import PreparedImages, describe_file
from biotune.deployment.bundle import (
    CARD_FILE,
    LABELS_FILE,
    MODEL_FILE,
    SAMPLES_FILE,
    TRITON_FOLDER,
    VARIANT_FILES,
    VERIFICATION_FILE,
    write_samples,
)
from biotune.deployment.export import export_onnx
from biotune.deployment.predictor import Predictor
from biotune.deployment.triton import write_triton_repository
from biotune.deployment.verify import compare
from biotune.finetuning.backbones import weights_identity
from biotune.finetuning.checkpoints import ModelCard, load_model_of
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.feature_cache import cut_of
from biotune.finetuning.inference import Trained, predict_each
from biotune.finetuning.training import ImageSubset
from pipeline.artifacts import (
    check_writable,
    folder_written_beside,
    read_json,
    read_rows,
    write_json,
)
from pipeline.errors import PipelineError
from pipeline.home import biotune_home
from pipeline.params import Params
from pipeline.prepare import source_of
from pipeline.proof.agreement import BATCH_SIZES, SIZES, Answers, Originals, ask, thumbnail
from pipeline.proof.card import CardFacts, model_card
from pipeline.proof.formats import add_variants
from pipeline.reporting.console import percent, print_table
from pipeline.tracking.origin import lineage
from pipeline.tracking.registry import Registered, write_mlflow_model
from pipeline.tracking.stage_run import StageRun, tracked_stage
from pipeline.trials.side_by_side import resolve_workers, single_threads

LOCK_FILE: Final = Path(__file__).parents[1] / "requirements.lock"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


class ExportMismatchError(PipelineError):
    """The exported model does not say what the network says; no model is written."""


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
        card,
        described,
        evaluated,
        read_rows(inputs.classes, "evaluate"),
        read_json(inputs.search_metrics, "search"),
        images,
    )
    originals = Originals(source_of(params, images_path), images)
    check_writable(files.bundle, files.metrics, files.lineage)
    with tracked_stage("export", params, images.fingerprint, home) as tracked:
        with folder_written_beside(files.bundle, VERIFICATION_FILE) as folder:
            model = folder / MODEL_FILE
            background = params.prepare.background
            export_onnx(backbone, card, model, background=background, described=described)
            variants = add_variants(params, folder, images)
            predictors = _predictors(folder, variants)
            exported = Trained(backbone, cut_of(backbone, card.plan))
            compared, answers = _verify(params, predictors, exported, images, originals)
            figures = _figures(params, compared, variants, len(originals))
            write_json(files.metrics, figures)
            _check_agreement(params, figures, files.metrics)
            _write_samples(folder, predictors, answers)
            _complete(folder, card, figures, model_card(facts, figures))
        tracked.metrics(figures)
        _track(tracked, params, files.bundle, described, answers, originals)
        write_json(
            files.lineage,
            lineage(described, describe_file(files.bundle / MODEL_FILE), params, tracked),
        )
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


def _predictors(folder: Path, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Predictor]:
    """By name, every model that is written, computing on one thread."""
    names = {"fp32": MODEL_FILE}
    names |= {name: VARIANT_FILES[name] for name, one in variants.items() if one["kept"]}
    return {name: Predictor(folder / file, device="cpu", threads=1) for name, file in names.items()}


def _verify(
    params: Params,
    predictors: Mapping[str, Predictor],
    exported: Trained,
    images: PreparedImages,
    originals: Originals,
) -> tuple[dict[str, Any], Answers]:
    """Every model against torch: its figures, and what each model said."""
    workers = resolve_workers(params.runtime.workers, "cpu")
    with tqdm(total=len(originals), desc="verify", unit="image") as progress:
        answers = ask(predictors, exported.backbone, originals, images, workers, progress.update)
    test = ImageSubset(images.images, images.labels, originals.rows)
    with single_threads(workers) as threads:
        batches = [rows for (rows,) in predict_each([exported], test, Compute(), threads)]
    compared = {
        name: {
            **_compared(answers.probabilities[name], np.concatenate(batches), originals.labels),
            **{
                size: {batch: asdict(agreement) for batch, agreement in by_batch.items()}
                for size, by_batch in answers.at_sizes[name].items()
            },
        }
        for name in predictors
    }
    return compared, answers


def _figures(
    params: Params,
    compared: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, Mapping[str, Any]],
    test_images: int,
) -> dict[str, Any]:
    return {
        "test_images": test_images,
        "min_label_agreement": params.export.min_label_agreement,
        **compared["fp32"],
        **{name: {**one, **compared.get(name, {})} for name, one in variants.items()},
    }


def _compared(
    by_size: Mapping[int, NDArray[np.float32]],
    reference: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"batch_{size}": asdict(compare(rows, reference)) for size, rows in by_size.items()
    }
    found["test_accuracy"] = float((by_size[max(by_size)].argmax(axis=1) == labels).mean())
    return found


def _check_agreement(params: Params, figures: Mapping[str, Any], metrics: Path) -> None:
    # The scaled images are too few to decide by; they say whether the graph resizes alike.
    compared = [of[f"batch_{n}"] for of in (figures, figures["prepared"]) for n in BATCH_SIZES]
    worst = min(one["label_agreement"] for one in compared)
    required = params.export.min_label_agreement
    if worst < required:
        raise ExportMismatchError(
            f"ONNX Runtime and torch agree on {percent(worst, 2)} of the test labels, "
            f"export.min_label_agreement asks for {percent(required, 2)}; the figures are "
            f"in {metrics}, and no model was written"
        )


def _write_samples(folder: Path, predictors: Mapping[str, Predictor], answers: Answers) -> None:
    said = {
        predictor.path.name: predictor.probabilities(answers.samples)
        for predictor in predictors.values()
    }
    write_samples(folder / SAMPLES_FILE, list(answers.samples), said)


def _complete(folder: Path, card: ModelCard, figures: dict[str, Any], text: str) -> None:
    """All that goes with the models; last of all ``verification.json``, with every checksum."""
    write_json(folder / LABELS_FILE, {"classes": list(card.classes)})
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    write_triton_repository(folder / TRITON_FOLDER, folder / MODEL_FILE, card.classes)
    described = {one.name: describe_file(one) for one in sorted(folder.iterdir()) if one.is_file()}
    write_json(folder / VERIFICATION_FILE, {**figures, "files": described})


def _track(
    tracked: StageRun,
    params: Params,
    bundle: Path,
    described: Mapping[str, Any],
    answers: Answers,
    originals: Originals,
) -> None:
    tracked.artifacts(one for one in sorted(bundle.iterdir()) if one.is_file())
    said = answers.probabilities["fp32"][BATCH_SIZES[0]].argmax(axis=1)
    right = answers.in_order((said == originals.labels).tolist())
    with TemporaryDirectory() as scratch:
        example = thumbnail(answers.samples[0], 32)[np.newaxis]
        write_mlflow_model(bundle / MODEL_FILE, Path(scratch, "model"), example)
        tracked.model(
            Path(scratch, "model"),
            Registered(params.tracking.registered_model, described, answers.test, right),
        )


def _print_summary(bundle: Path, figures: Mapping[str, Any]) -> None:
    rows = []
    for name, file in {"fp32": MODEL_FILE, **VARIANT_FILES}.items():
        of_one = figures if name == "fp32" else figures[name]
        for size in ("original", *SIZES):
            at_size = of_one if size == "original" else of_one.get(size, {})
            agreements = [one for key, one in at_size.items() if key.startswith("batch_")]
            if agreements:
                rows.append((f"{file}, {size.replace('_', ' ')}", *_row(agreements)))
    title = f"{bundle} against torch, {figures['test_images']} original test images"
    print_table(title, ["", "same label", "largest difference in probability"], rows)


def _row(agreements: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """The worst of several batch sizes."""
    return (
        percent(min(one["label_agreement"] for one in agreements), 2),
        f"{max(one['largest_difference'] for one in agreements):.1e}",
    )
