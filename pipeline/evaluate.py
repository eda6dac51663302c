"""The evaluate stage: the only look at the test images, of the winner and of the best recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from tqdm import tqdm

from biotune.data.prepared import PreparedImages, describe_file
from biotune.finetuning.backbones import Backbone, block_sizes
from biotune.finetuning.checkpoints import ModelCard, load_model_of, seed_file
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.feature_cache import cut_of
from biotune.finetuning.inference import Trained, predict_each
from biotune.finetuning.metrics import (
    class_scores,
    classifier_scores,
    mean_interval,
)
from biotune.finetuning.training import ImageSubset
from pipeline.artifacts import check_writable, write_csv, write_json
from pipeline.home import biotune_home
from pipeline.params import Params
from pipeline.reporting.console import percent, print_plan, print_table
from pipeline.tracking.stage_run import tracked_stage
from pipeline.trials.machine import resolve_device
from pipeline.trials.side_by_side import resolve_workers, single_threads


@dataclass(frozen=True)
class EvaluateFiles:
    """Where the evaluate stage writes."""

    metrics: Path
    predictions: Path
    confusion: Path
    classes: Path


@dataclass(frozen=True)
class EvaluatedModels:
    """What the finetune stage wrote.

    Attributes:
        winner: a ``.safetensors``; its ``.json`` is beside it.
        baseline: the best recipe's, likewise.
        seeds: folder of the weights of every run, as
            :func:`~biotune.finetuning.checkpoints.seed_file` names them.
    """

    winner: Path
    baseline: Path
    seeds: Path


@dataclass(frozen=True)
class _Plan:
    """The winner or the best recipe.

    Attributes:
        backbone: of the kept model.
        card: likewise.
        kept: its weights.
        seeds: the weights of every run.
    """

    backbone: Backbone
    card: ModelCard
    kept: Path
    seeds: Sequence[Path]


def run(
    params: Params, *, prepared: Path, models: EvaluatedModels, files: EvaluateFiles
) -> dict[str, Any]:
    """Measure both models on the test split, in fp32, and print them side by side.

    Args:
        params: the sections ``finetune``, ``runtime`` and ``tracking`` are used.
        prepared: folder that the prepare stage wrote.
        models: to measure.
        files: to write.

    Returns:
        What ``metrics.json`` says.

    Raises:
        ValueError, OSError: for inputs that cannot be used.
    """
    home = biotune_home()
    images = PreparedImages.open(prepared)
    images.check_files()
    test = ImageSubset(images.images, images.labels, images.indices("test"))
    labels = images.labels[test.indices]
    compute = Compute(resolve_device(params.runtime.device))
    compute.set_up()
    by_seed = _seed_files(models.seeds, params.finetune.training_seeds)
    winner, recipe = (
        _Plan(*load_model_of(kept, images), kept, by_seed[role])
        for role, kept in (("winner", models.winner), ("best_recipe", models.baseline))
    )
    workers = resolve_workers(params.runtime.workers, compute.device)
    check_writable(files.metrics, files.predictions, files.confusion, files.classes)
    with tracked_stage("evaluate", params, images.fingerprint, home) as tracked:
        said = _predictions([winner, recipe], test, compute, workers)
        scores = {file: classifier_scores(rows, labels) for file, rows in said.items()}
        probabilities = said[winner.kept]
        metrics = {
            **scores[winner.kept],
            **_trained(winner.card),
            "over_seeds": _over_seeds([scores[file] for file in winner.seeds]),
            "test_images": len(test),
            "best_recipe": {
                "name": recipe.card.name,
                **scores[recipe.kept],
                **_trained(recipe.card),
                "over_seeds": _over_seeds([scores[file] for file in recipe.seeds]),
            },
            "gain_over_best_recipe": _gain(probabilities, said[recipe.kept], labels),
        }
        predicted = probabilities.argmax(axis=1)
        per_class = class_scores(predicted, labels, images.classes)
        write_json(files.metrics, metrics)
        write_csv(files.classes, per_class, list(per_class[0]))
        _write_predictions(files, images, test.indices, probabilities)
        tracked.metrics(metrics)
        tracked.artifacts([files.metrics, files.predictions, files.confusion, files.classes])
    _print_summary(winner.card, metrics, params.finetune.base_lr)
    return metrics


def _seed_files(seeds: Path, training_seeds: Sequence[int]) -> dict[str, list[Path]]:
    """Role → weights of each of its runs; a recipe that won was trained once, as the winner."""
    weights: dict[str, list[Path]] = {}
    for role in ("winner", "best_recipe"):
        files = [seed_file(seeds, role, seed) for seed in training_seeds]
        weights[role] = files if files[0].exists() else weights.get("winner", files)
        for file in weights[role]:
            if not file.exists():
                raise FileNotFoundError(f"there is no {file}; run the finetune stage again")
    return weights


def _predictions(
    plans: Sequence[_Plan], test: ImageSubset, compute: Compute, workers: int
) -> dict[Path, NDArray[np.float32]]:
    """Class probabilities of the test images by each file's network; all are in memory together.

    The kept model is one of its plan's runs, and a recipe that won is the winner: what is the same,
    tensor by tensor, is computed once.
    """
    networks: dict[tuple[object, ...], Trained] = {}
    key_of: dict[Path, tuple[object, ...]] = {}
    for plan in plans:
        backbone, cut = plan.backbone, cut_of(plan.backbone, plan.card.plan)
        for file in (plan.kept, *plan.seeds):
            content = describe_file(file)["sha256"]
            key_of[file] = key = (content, backbone.name, backbone.mean, backbone.std, cut)
            if key not in networks:
                networks[key] = Trained(_with_weights(backbone, file), cut)
                networks[key].backbone.to(compute.device)
    keep_freed_memory()
    batches: list[tuple[NDArray[np.float32], ...]] = []
    with (
        single_threads(workers) as threads,
        tqdm(total=len(test), desc="evaluate", unit="image") as progress,
    ):
        for batch in predict_each(list(networks.values()), test, compute, threads):
            batches.append(batch)
            progress.update(len(batch[0]))
    whole = dict(zip(networks, map(np.concatenate, zip(*batches, strict=True)), strict=True))
    return {file: whole[key] for file, key in key_of.items()}


def _with_weights(backbone: Backbone, file: Path) -> Backbone:
    network = deepcopy(backbone)
    network.network.load_state_dict(load_file(file))
    return network


def _over_seeds(
    scores: Sequence[Mapping[str, float | list[float]]],
) -> dict[str, float | None]:
    """Mean and standard deviation of the test scores of all runs, of which one was kept."""
    figures: dict[str, float | None] = {}
    for name in ("accuracy", "balanced_accuracy", "f1_macro"):
        values = [float(score[name]) for score in scores]  # type: ignore[arg-type]
        figures[f"{name}_mean"] = float(np.mean(values))
        figures[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return figures


def _trained(card: ModelCard) -> dict[str, float]:
    sizes = block_sizes(card.backbone, len(card.classes))
    trained = sum(sizes[block] for block in card.plan.trained_blocks)
    return {"trained_parameters": trained, "trained_share": trained / sum(sizes.values())}


def _gain(
    winner: NDArray[np.float32], recipe: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Difference in test accuracy on the same images, with its paired bootstrap interval."""
    right = (winner.argmax(axis=1) == labels).astype(np.float64)
    recipe_right = (recipe.argmax(axis=1) == labels).astype(np.float64)
    difference = right - recipe_right
    return {"accuracy": float(difference.mean()), "interval_95": mean_interval(difference)}


def _write_predictions(
    files: EvaluateFiles,
    images: PreparedImages,
    indices: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    rows = [
        {
            "path": images.paths[index],
            "label": images.classes[images.labels[index]],
            "predicted": images.classes[output.argmax()],
            "probability": f"{output.max():.6f}",
        }
        for index, output in zip(indices.tolist(), probabilities, strict=True)
    ]
    write_csv(files.predictions, rows, ["path", "label", "predicted", "probability"])
    confusion = [{"actual": row["label"], "predicted": row["predicted"]} for row in rows]
    write_csv(files.confusion, confusion, ["actual", "predicted"])


def _print_summary(card: ModelCard, metrics: dict[str, Any], base_lr: float) -> None:
    recipe = metrics["best_recipe"]
    print_plan(
        f"The winner, {card.name}, block by block",
        card.plan,
        block_sizes(card.backbone, len(card.classes)),
        base_lr,
    )
    low, high = metrics["accuracy_interval_95"]
    recipe_low, recipe_high = recipe["accuracy_interval_95"]
    rows = [
        ("accuracy", percent(metrics["accuracy"], 2), percent(recipe["accuracy"], 2)),
        (
            "95 % interval",
            f"{percent(low)} to {percent(high)}",
            f"{percent(recipe_low)} to {percent(recipe_high)}",
        ),
        (
            "accuracy over all seeds",
            *(_mean_and_sd(measured["over_seeds"]) for measured in (metrics, recipe)),
        ),
        *(
            (name.replace("_", " "), f"{metrics[name]:.4f}", f"{recipe[name]:.4f}")
            for name in (
                "balanced_accuracy",
                "f1_macro",
                "cohen_kappa",
                "average_precision_macro",
                "expected_calibration_error",
            )
        ),
        (
            "parameters trained",
            percent(metrics["trained_share"]),
            percent(recipe["trained_share"]),
        ),
    ]
    title = f"Test, {metrics['test_images']} images that no choice was made by"
    print_table(title, ["", f"winner: {card.name}", f"best recipe: {recipe['name']}"], rows)
    if card.name == recipe["name"]:
        print("The best recipe won: no plan that the search found was clearly better.")
        return
    gain = metrics["gain_over_best_recipe"]
    low, high = gain["interval_95"]
    print(
        f"Gain over the best recipe: {100 * gain['accuracy']:+.2f} points of accuracy "
        f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})"
    )


def _mean_and_sd(over_seeds: Mapping[str, float | None]) -> str:
    mean, sd = over_seeds["accuracy_mean"] or 0.0, over_seeds["accuracy_sd"]
    return percent(mean, 2) if sd is None else f"{100 * mean:.2f} ± {100 * sd:.2f} %"
