"""``--dry-run``: check what a stage needs, and say what it would take, without doing it.

Times and memory are of full fine-tuning without early stopping: frozen blocks, racing and what the
evaluation store holds make it less, so they are the most that a stage can take.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biotune.data.division import FOLD_SEED
from biotune.data.prepared import DATASET_FILE, PreparedImages
from biotune.data.splits import SPLITS, assign_splits, stratified_folds
from biotune.finetuning.backbones import block_sizes, build_backbone, weights_identity
from biotune.finetuning.cost import StepCost, step_cost
from biotune.images.reading import read_image
from biotune.images.sources import SOURCES
from pipeline.best_plan import read_plans
from pipeline.evolving.confirmation import most_runs
from pipeline.evolving.loop import new_search
from pipeline.params import FinetuneParams, Params, SearchParams
from pipeline.prepare import source_of
from pipeline.proof.export_formats import FORMATS
from pipeline.reporting.console import print_table
from pipeline.trials.machine import check_training, describe, resolve_compute
from pipeline.trials.side_by_side import resolve_workers

PROCESS_BYTES = 600_000_000
"""What a worker takes before it has a network: Python, torch, and their libraries, as measured."""


@dataclass(frozen=True)
class ExpectedImages:
    """The images that the stages after prepare will work on.

    Attributes:
        labels: class indices of each split's images.
        classes: how many there are.
        known_from: for people.
    """

    labels: dict[str, NDArray[Any]]
    classes: int
    known_from: str

    def count(self, split: str) -> int:
        """Number of images of a split."""
        return len(self.labels[split])


def expected_images(params: Params, prepared: Path) -> ExpectedImages:
    """From the prepared images, if there are any, else from where they will come from.

    Raises:
        ValueError, OSError: for images or counts that cannot be used.
    """
    if (prepared / DATASET_FILE).exists():
        dataset = PreparedImages.open(prepared)
        labels: dict[str, NDArray[Any]] = {s: dataset.labels[dataset.indices(s)] for s in SPLITS}
        return ExpectedImages(labels, len(dataset.classes), f"prepared in {prepared}")
    return _listed_images(params, Path(params.prepare.path))


def _listed_images(params: Params, path: Path) -> ExpectedImages:
    section = params.prepare
    kind = SOURCES[section.source]
    published = kind.downloaded
    given: list[str] | None
    if published is not None and not published.is_in(path):
        all_labels = np.concatenate(
            [np.arange(count) % published.classes for count in published.images.values()]
        )
        given = [split for split, count in published.images.items() for _ in range(count)]
        classes, known_from = published.classes, "as published; they are not downloaded yet"
    else:
        source = source_of(params, path)
        all_labels, given, classes = source.labels, source.splits, len(source.classes)
        known_from = f"of {kind.carried_by}" if kind.carried_by else f"listed in {path}"
    splits = assign_splits(
        all_labels,
        given,
        train=section.train_images,
        validation=section.validation_images,
        seed=section.seed,
    )
    labels: dict[str, NDArray[Any]] = {s: all_labels[splits == s] for s in SPLITS}
    return ExpectedImages(labels, classes, known_from)


def prepare(params: Params, images: Path) -> None:
    """Say how many images of what there are, and how long a few of them take to read."""
    section = params.prepare
    published = SOURCES[section.source].downloaded
    missing = published is not None and not published.is_in(images)
    if missing:
        print(f"{section.source} is not in {images} yet: torchvision will download it.")
    expected = _listed_images(params, images)
    total = sum(expected.count(split) for split in SPLITS)
    rows: list[tuple[str, str]] = [(split, str(expected.count(split))) for split in SPLITS]
    rows.append(("bytes", f"{total * section.image_size**2 * 3:,}"))
    if not missing:
        source = source_of(params, images)
        few = np.linspace(0, len(source.paths) - 1, 3).astype(int).tolist()
        begin = time.perf_counter()
        unusable = [read_image(source, index, section.image_size)[1].unusable for index in few]
        each = (time.perf_counter() - begin) / len(few)
        rows.append(("time on one core", _duration(each * total)))
        rows += [("cannot be read", reason) for reason in unusable if reason]
    print_table(f"Dry run of prepare: images {expected.known_from}", ["", ""], rows)


def search(params: Params, prepared: Path) -> None:
    """Say how many candidates and runs a search asks for, and what they take."""
    section = params.search
    expected = _checked(params, section, prepared)
    sizes = block_sizes(params.model.backbone, expected.classes)
    for split in ("train", "validation"):
        stratified_folds(expected.labels[split], section.folds, FOLD_SEED)
    candidates = new_search(section, tuple(sizes)).planned_evaluations
    seeds, confirmed = len(section.training_seeds), most_runs(section)
    runs = candidates * seeds
    may_end_early = section.screening and section.min_expected_gain > 0
    per_run = {split: expected.count(split) / section.folds for split in ("train", "validation")}
    whole = {split: float(expected.count(split)) for split in ("train", "validation")}
    cost, rows = _cost(params, section, expected)
    seconds = section.epochs * (runs * _epoch(cost, per_run) + confirmed * _epoch(cost, whole))
    rows = [
        ("images", _images(expected)),
        ("blocks", str(len(sizes))),
        ("candidates", f"{'at most ' * may_end_early}{candidates} x {seeds} seeds"),
        ("confirmation", f"at most {confirmed} runs"),
        ("runs", f"at most {runs + confirmed}, of at most {section.epochs} epochs"),
        *rows,
        ("time", f"at most {_duration(seconds / _workers(params))}"),
    ]
    print_table("Dry run of search: nothing is trained", ["", ""], rows)


def finetune(params: Params, prepared: Path, best_plan: Path) -> None:
    """Say how many runs the final training takes."""
    section = params.finetune
    expected = _checked(params, section, prepared)
    plans = 2
    if best_plan.exists():
        blocks = tuple(block_sizes(params.model.backbone, expected.classes))
        plans = len({plan for _, plan in read_plans(best_plan, blocks).values()})
    runs = plans * len(section.training_seeds)
    cost, rows = _cost(params, section, expected)
    whole = {split: float(expected.count(split)) for split in ("train", "validation")}
    seconds = runs * section.epochs * _epoch(cost, whole) / _workers(params)
    rows = [
        ("images", _images(expected)),
        ("plans", f"{plans} x {len(section.training_seeds)} seeds"),
        ("runs", f"{runs}, of at most {section.epochs} epochs"),
        *rows,
        ("time", f"at most {_duration(seconds)}"),
    ]
    print_table("Dry run of finetune: nothing is trained", ["", ""], rows)


def predict(stage: str, params: Params, prepared: Path, inputs: Sequence[Path]) -> None:
    """Say what ``evaluate`` or ``export`` takes, and which of its inputs are still to be made."""
    expected = _checked(params, params.finetune, prepared)
    cost, _ = _cost(params, params.finetune, expected)
    # All runs of two plans, or of one; torch, and ONNX Runtime in each format and batch size.
    proved = sum(len(form.batch_sizes) for form in FORMATS.values())
    passes = 2 * len(params.finetune.training_seeds) if stage == "evaluate" else 1 + proved
    seconds = passes * expected.count("test") * cost.predict_seconds
    rows = [
        ("images", _images(expected)),
        *((str(file), "is there" if file.exists() else "not yet: finetune") for file in inputs),
        ("time", f"about {_duration(seconds)}"),
    ]
    print_table(f"Dry run of {stage}", ["", ""], rows)


def _checked(
    params: Params, section: SearchParams | FinetuneParams, prepared: Path
) -> ExpectedImages:
    expected = expected_images(params, prepared)
    check_training(section, expected.classes)
    model = params.model
    weights_identity(model.backbone, model.weights)  # that there is such a file
    if Path(model.weights).is_file():
        build_backbone(model.backbone, model.weights, expected.classes)  # that it fits
    return expected


def _cost(
    params: Params, section: SearchParams | FinetuneParams, expected: ExpectedImages
) -> tuple[StepCost, list[tuple[str, str]]]:
    compute = resolve_compute(params.runtime, params.model.backbone)
    compute.set_up()
    workers = _workers(params)
    size = params.prepare.image_size
    cost = step_cost(params.model.backbone, expected.classes, size, section.batch_size, compute)
    memory = PROCESS_BYTES + cost.fixed_bytes + section.batch_size * cost.image_bytes
    rows = [
        ("computed on", f"{describe(compute)}; {workers} at a time"),
        ("a training step", _duration(cost.train_seconds * section.batch_size)),
        (
            "memory",
            f"about {memory / 2**30:.1f} GiB for each of {workers}, and at most "
            f"{params.runtime.feature_cache_bytes / 2**30:.1f} GiB for kept features",
        ),
    ]
    return cost, rows


def _epoch(cost: StepCost, images: dict[str, float]) -> float:
    """Seconds of an epoch."""
    return images["train"] * cost.train_seconds + images["validation"] * cost.predict_seconds


def _workers(params: Params) -> int:
    compute = resolve_compute(params.runtime, params.model.backbone)
    return resolve_workers(params.runtime.workers, compute.device)


def _images(expected: ExpectedImages) -> str:
    counts = ", ".join(f"{expected.count(split)} {split}" for split in SPLITS)
    return f"{counts}; {expected.classes} classes ({expected.known_from})"


def _duration(seconds: float) -> str:
    """Such as 0.3 s, 12 min, 5.2 h or 3.1 days."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"
