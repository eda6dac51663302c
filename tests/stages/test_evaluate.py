"""``biotune evaluate`` by hand: success, and what a person may do wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from biotune.data.prepared import PreparedImages
from stages import prepare
from stages.evaluate import main
from tests.stages.conftest import Pipeline
from tests.tiny import PICTURES, write_tiny_params


def test_it_prints_the_winner_beside_the_best_recipe(pipeline: Pipeline) -> None:
    result = pipeline.results["evaluate"]
    assert result.exit_code == 0, result.output
    assert "block by block" in result.output
    assert "accuracy" in result.output
    best = json.loads((pipeline.artifacts / "search/best_plan.json").read_text())
    recipe_won = best["name"] == best["best_recipe"]["name"]
    assert ("The best recipe won" in result.output) is recipe_won
    assert ("Gain over the best recipe:" in result.output) is not recipe_won


def test_every_figure_is_there_and_follows_from_the_predictions(pipeline: Pipeline) -> None:
    metrics = json.loads((pipeline.artifacts / "evaluation/metrics.json").read_text())
    for figures in (metrics, metrics["best_recipe"]):
        low, high = figures["accuracy_interval_95"]
        assert 0 <= low <= figures["accuracy"] <= high <= 1
        for name in ("balanced_accuracy", "f1_macro", "average_precision_macro"):
            assert 0 <= figures[name] <= 1
        assert -1 <= figures["cohen_kappa"] <= 1
        assert 0 <= figures["expected_calibration_error"] <= 1
        assert 0 < figures["trained_share"] <= 1
    table = pd.read_csv(pipeline.artifacts / "evaluation/predictions.csv", dtype=str)
    assert list(table.columns) == ["path", "label", "predicted", "probability"]
    assert (table.label == table.predicted).mean() == pytest.approx(metrics["accuracy"])
    gain = metrics["accuracy"] - metrics["best_recipe"]["accuracy"]
    assert metrics["gain_over_best_recipe"]["accuracy"] == pytest.approx(gain)


def test_every_run_is_tested_and_not_only_the_best_on_validation(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    """Three weights, of which two are the kept model's and one is untrained."""
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    trained = load_file(in_pipeline.artifacts / "model/model.safetensors")
    for seed in (0, 1):
        save_file(trained, seeds / f"winner-{seed}.safetensors")
    reset = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    save_file(reset, seeds / "winner-2.safetensors")
    params = write_tiny_params(tmp_path / "my.yaml", finetune__training_seeds=[0, 1, 2])
    metrics = tmp_path / "metrics.json"
    command = ["--params", str(params), "--seeds", str(seeds), "--metrics", str(metrics)]
    for name in ("predictions", "confusion", "classes"):
        command += [f"--{name}", str(tmp_path / f"{name}.csv")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    figures = json.loads(metrics.read_text())
    accuracy = figures["accuracy"]
    images = PreparedImages.open(in_pipeline.artifacts / "prepared")
    zeros = float((images.labels[images.indices("test")] == 0).mean())  # all logits are equal
    over_seeds = figures["over_seeds"]
    assert over_seeds["accuracy_mean"] == pytest.approx((2 * accuracy + zeros) / 3)
    assert over_seeds["accuracy_sd"] == pytest.approx(abs(accuracy - zeros) / 3**0.5)
    assert "accuracy over all seeds" in result.output
    assert " ± " in result.output


def evaluate_into(folder: Path, *words: str) -> dict[str, bytes]:
    """Evaluate once more; what it wrote, by name."""
    folder.mkdir()
    command = list(words)
    for name in ("metrics.json", "predictions.csv", "confusion.csv", "classes.csv"):
        command += [f"--{name.partition('.')[0]}", str(folder / name)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_file_is_the_same_with_any_number_of_workers(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    outputs = []
    for workers in (1, 2):
        params = write_tiny_params(tmp_path / f"{workers}.yaml", runtime__workers=workers)
        outputs.append(evaluate_into(tmp_path / f"{workers}", "--params", str(params)))
    assert len(outputs[0]) == 4
    assert outputs[0] == outputs[1]


def test_what_is_the_same_is_computed_once(in_pipeline: Pipeline, tmp_path: Path) -> None:
    """The kept model is one of its plan's runs; two plans may have frozen the same blocks."""
    passed: Counter[str] = Counter()

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, torch.nn.Linear):
            passed["classifier"] += len(inputs[0])

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        evaluate_into(tmp_path / "again")
    finally:
        handle.remove()
    runs = list((in_pipeline.artifacts / "model/seeds").iterdir())
    images = PreparedImages.open(in_pipeline.artifacts / "prepared")
    assert passed["classifier"] == len(runs) * len(images.indices("test"))


def test_weights_of_a_seed_that_are_missing_say_which_stage_to_run(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    params = write_tiny_params(tmp_path / "my.yaml", finetune__training_seeds=[0, 9])
    result = CliRunner().invoke(main, ["--params", str(params)])
    assert result.exit_code == 1
    assert "winner-9.safetensors; run the finetune stage again" in result.output.replace("\n", " ")


def test_there_is_a_prediction_for_every_test_image_and_no_other(pipeline: Pipeline) -> None:
    images = PreparedImages.open(pipeline.artifacts / "prepared")
    table = pd.read_csv(pipeline.artifacts / "evaluation/predictions.csv", dtype=str)
    indices = images.indices("test")
    assert list(table.path) == [images.paths[index] for index in indices]
    assert list(table.label) == [images.classes[images.labels[index]] for index in indices]


def test_the_confusion_and_the_classes_agree_with_the_predictions(pipeline: Pipeline) -> None:
    folder = pipeline.artifacts / "evaluation"
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    confusion = pd.read_csv(folder / "confusion.csv", dtype=str)
    assert list(confusion.actual) == list(table.label)
    assert list(confusion.predicted) == list(table.predicted)
    classes = pd.read_csv(folder / "classes.csv", dtype={"class": str}).set_index("class")
    recall = (table.label == table.predicted).groupby(table.label).mean()
    assert classes.recall.to_dict() == pytest.approx(recall.to_dict())


def test_a_model_of_other_images_is_refused(in_pipeline: Pipeline, tmp_path: Path) -> None:
    params = write_tiny_params(tmp_path / "my.yaml", **PICTURES, prepare__image_size=48)
    other = str(tmp_path / "prepared")
    done = CliRunner().invoke(prepare.main, ["--params", str(params), "--out", other])
    assert done.exit_code == 0, done.output
    metrics = tmp_path / "metrics.json"
    result = CliRunner().invoke(main, ["--prepared", other, "--metrics", str(metrics)])
    assert result.exit_code == 1
    assert "was trained on other images than those prepared" in result.output
    assert not metrics.exists()


def test_a_missing_model_says_which_stage_to_run(in_pipeline: Pipeline, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--model", str(tmp_path / "no.safetensors")])
    assert result.exit_code == 1
    assert "run the finetune stage first" in result.output
