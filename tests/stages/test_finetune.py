"""``biotune finetune`` by hand: success, and what a person may do wrong."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from biotune.finetuning.checkpoints import load_model
from biotune.finetuning.fitness import Trainer
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.metrics import validation_scores
from biotune.finetuning.training import predict_probabilities
from pipeline.params import load_params
from pipeline.trials.jobs import Job, Outcome
from pipeline.trials.machine import resolve_compute
from pipeline.trials.pool import LostWorkerError
from stages import evaluate
from stages.finetune import main
from tests.pipeline.trainings import FakeWorkers
from tests.stages.conftest import Pipeline
from tests.threads import one_thread
from tests.tiny import NETWORK, write_tiny_params


def test_the_winner_and_the_best_recipe_are_kept_with_what_rebuilds_them(
    pipeline: Pipeline,
) -> None:
    result = pipeline.results["finetune"]
    assert result.exit_code == 0, result.output
    best = json.loads((pipeline.artifacts / "search/best_plan.json").read_text())
    _, winner = load_model(pipeline.artifacts / "model/model.safetensors")
    _, recipe = load_model(pipeline.artifacts / "model/baseline.safetensors")
    assert dict(winner.plan) == best["blocks"]
    assert dict(recipe.plan) == best["best_recipe"]["blocks"]
    assert winner.classes == tuple("0123456789")


def test_the_kept_model_scores_on_validation_what_it_says(pipeline: Pipeline) -> None:
    weights = pipeline.artifacts / "model/model.safetensors"
    _, card = load_model(weights)
    # As it was trained: with the same layers, precision and number of threads.
    compute = resolve_compute(load_params(pipeline.folder / "params.yaml").runtime, NETWORK)
    trainer = Trainer(pipeline.artifacts / "prepared", NETWORK, "none", compute)
    trainer.backbone.network.load_state_dict(load_file(weights))
    subset = trainer.subset("validation")
    with one_thread():
        probabilities = predict_probabilities(trainer.backbone, subset, compute)
    accuracy, _ = validation_scores(probabilities, subset.labels[subset.indices])
    metrics = json.loads((pipeline.artifacts / "model/metrics.json").read_text())
    assert accuracy == card.validation_score
    assert metrics["winner"]["validation_score"] == card.validation_score
    assert metrics["winner"]["validation_score_sd"] is None  # from one seed there is none


def test_the_weights_of_every_run_are_kept_and_the_best_is_the_model(pipeline: Pipeline) -> None:
    folder = pipeline.artifacts / "model"
    best = json.loads((pipeline.artifacts / "search/best_plan.json").read_text())
    expected = {"winner-0.safetensors"}
    if best["blocks"] != best["best_recipe"]["blocks"]:
        expected.add("best_recipe-0.safetensors")
    assert {file.name for file in (folder / "seeds").iterdir()} == expected
    kept = (folder / "seeds" / "winner-0.safetensors").read_bytes()
    assert kept == (folder / "model.safetensors").read_bytes()
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_a_recipe_that_won_is_trained_once_as_the_winner(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    best = json.loads((in_pipeline.artifacts / "search/best_plan.json").read_text())
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({**best["best_recipe"], "best_recipe": best["best_recipe"]}))
    seeds, tuned = tmp_path / "seeds", tmp_path / "model.safetensors"
    command = ["--best-plan", str(plan), "--model", str(tuned), "--seeds", str(seeds)]
    command += ["--baseline", str(tmp_path / "baseline.safetensors")]
    command += ["--curves", str(tmp_path / "c.csv"), "--metrics", str(tmp_path / "m.json")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert [file.name for file in seeds.iterdir()] == ["winner-0.safetensors"]
    baseline = str(tmp_path / "baseline.safetensors")
    command = ["--model", str(tuned), "--baseline", baseline, "--seeds", str(seeds)]
    command += ["--metrics", str(tmp_path / "evaluated.json")]
    for name in ("predictions", "confusion", "classes"):
        command += [f"--{name}", str(tmp_path / f"{name}.csv")]
    result = CliRunner().invoke(evaluate.main, command)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "evaluated.json").read_text())
    recipe = metrics["best_recipe"]
    assert recipe.pop("name") == best["best_recipe"]["name"]
    assert recipe == {name: metrics[name] for name in recipe}
    assert "accuracy" in recipe
    assert metrics["gain_over_best_recipe"] == {"accuracy": 0.0, "interval_95": [0.0, 0.0]}


def test_a_folder_of_other_things_is_not_replaced_by_weights(
    in_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.WorkerPool.submit", pytest.fail)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    result = CliRunner().invoke(main, ["--seeds", str(tmp_path / "mine")])
    assert result.exit_code == 1
    assert "holds something else than weights" in result.output
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is damaged"),
        ("{}", "no usable plan of the winner (no 'name')"),
        ('{"name": "x", "blocks": {"stem": 1.0}, "best_recipe": {}}', "but the network's ['stem'"),
        ('{"name": "x", "blocks": {"stem": -1.0}}', "must be a positive finite number"),
        ("[]", "is damaged (it holds a list"),
        ('{"name": "x", "blocks": [1, 2]}', "there is no usable plan of the winner"),
        (None, "run the search stage first"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_training(
    in_pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.WorkerPool.submit", pytest.fail)
    plan = tmp_path / "plan.json"
    if text is not None:
        plan.write_text(text)
    model = tmp_path / "model.safetensors"
    result = CliRunner().invoke(main, ["--best-plan", str(plan), "--model", str(model)])
    assert result.exit_code == 1
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not model.exists()


def test_a_run_that_diverges_is_an_error_and_keeps_nothing(
    in_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverged = LearningCurve((), (), (), 1, "diverged", 0.0)
    workers = FakeWorkers(lambda job: [Outcome(job.task, curve=diverged)])
    monkeypatch.setattr("pipeline.workshop.WorkerPool", lambda *_: workers)
    params = write_tiny_params(tmp_path / "my.yaml")
    model, seeds = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "seeds"
    command = ["--params", str(params), "--model", str(model), "--seeds", str(seeds)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "ended as diverged; try a smaller finetune.base_lr" in result.output
    assert not list(model.parent.iterdir())


def test_runs_that_are_lost_are_in_the_stores_table_of_attempts(
    in_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(job: Job) -> list[Outcome]:
        error = LostWorkerError("a training run was lost")
        killed = Outcome(job.task, attempt="killed while finetuning")
        return [killed, Outcome(job.task, error=error)]

    monkeypatch.setattr("pipeline.workshop.WorkerPool", lambda *_: FakeWorkers(lost))
    command = ["--model", str(tmp_path / "m.safetensors"), "--seeds", str(tmp_path / "seeds")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "a training run was lost" in result.output
    with sqlite3.connect(in_pipeline.folder / "home/evaluations.sqlite") as database:
        reasons = database.execute("SELECT reason FROM attempts").fetchall()
    assert ("killed while finetuning",) in reasons
