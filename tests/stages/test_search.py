"""``biotune search`` by hand: success, going on where it was, and what a person may do wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from biotune.evolution import Genome, decode
from biotune.plan import FineTunePlan
from pipeline.tracking.database import own_database
from stages.search import main
from tests.stages.conftest import Pipeline
from tests.tiny import BLOCKS, PICTURES, write_tiny_params


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_prints_the_winner_block_by_block(pipeline: Pipeline) -> None:
    result = pipeline.results["search"]
    assert result.exit_code == 0, result.output
    assert "The winner: " in result.output
    for block in BLOCKS:
        assert block in result.output
    assert "best recipe" in result.output


def test_the_best_plan_is_the_confirmed_winner_and_its_genome_decodes_to_it(
    pipeline: Pipeline,
) -> None:
    best = json.loads((pipeline.artifacts / "search/best_plan.json").read_text())
    plan = FineTunePlan(best["blocks"])
    assert decode(Genome.from_genes(best["genome"]), tuple(plan)) == plan
    confirmed = rows(pipeline.artifacts / "search/confirmations.csv")
    assert [float(row["fitness"]) for row in confirmed] == sorted(
        float(row["fitness"]) for row in confirmed
    )
    recipe = next(row for row in confirmed if row["is_recipe"] == "True")
    (winner,) = [row for row in confirmed if row["name"] == best["name"]]
    assert best["fitness"] == float(winner["fitness"])
    assert (recipe["name"], float(recipe["fitness"])) == (
        best["best_recipe"]["name"],
        best["best_recipe"]["fitness"],
    )


def test_there_is_a_row_for_every_candidate(pipeline: Pipeline) -> None:
    table = rows(pipeline.artifacts / "search/evaluations.csv")
    assert [row["id"] for row in table] == [
        str(i) for i in range(len(BLOCKS) + 5)
    ]  # + N + 2E + N - E
    metrics = json.loads((pipeline.artifacts / "search/metrics.json").read_text())
    assert metrics["evaluations"] == len(BLOCKS) + 5
    for row in table:
        importances = [float(v) for k, v in row.items() if k.startswith("importance.")]
        multipliers = {
            k.removeprefix("lr_multiplier."): float(v) if v else None
            for k, v in row.items()
            if k.startswith("lr_multiplier.")
        }
        genome = Genome(importances, float(row["threshold"]))
        assert decode(genome, tuple(multipliers)) == FineTunePlan(multipliers)


def test_where_the_winner_came_from_and_who_was_an_elite_is_printed_tracked_and_written(
    pipeline: Pipeline,
) -> None:
    metrics = json.loads((pipeline.artifacts / "search/metrics.json").read_text())
    printed = " ".join(pipeline.results["search"].output.split())
    assert f"Where the winner came from: {metrics['winner_origin']}." in printed
    bred_elites = metrics["bred_elites"]
    assert f"Bred: {metrics['bred']} candidates; elites among them: {bred_elites}." in printed
    assert f"Left to gain: {100 * metrics['expected_gain_left']:.2f} points" in printed

    table = rows(pipeline.artifacts / "search/evaluations.csv")
    bred = [row for row in table if row["origin"] in {"exploitation", "offspring"}]
    assert metrics["bred"] == len(bred)
    assert bred_elites == sum(row["elite"] == "True" for row in bred)
    assert {row["elite"] for row in table} == {"True", "False"}

    client = MlflowClient(own_database(pipeline.folder / "home"))
    (experiment,) = client.search_experiments(filter_string="name = 'biotune'")
    (run,) = client.search_runs(
        [experiment.experiment_id], "tags.`mlflow.runName` = 'search'", max_results=10
    )
    assert run.data.tags["biotune.winner_origin"] == metrics["winner_origin"]
    assert "biotune.early_end" not in run.data.tags
    for name in ("winner_generation", "bred", "bred_elites", "expected_gain_left"):
        assert run.data.metrics[name] == metrics[name]


def test_a_search_that_ends_early_says_so_and_expects_no_more_runs(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    params = write_tiny_params(tmp_path / "my.yaml", **PICTURES, search__min_expected_gain=1.0)
    names = ("best-plan", "evaluations", "confirmations", "metrics")
    out = [word for name in names for word in (f"--{name}", str(tmp_path / name))]
    result = CliRunner().invoke(main, ["--params", str(params), *out])
    assert result.exit_code == 0, result.output
    before, after = result.output.split("ended after generation 0 of 1: the model expects at most ")
    assert "from a plan that was not trained (search.min_expected_gain 1)" in after
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert (metrics["evaluations"], metrics["bred"]) == (len(BLOCKS) + 2, 0)
    planned, left = (re.findall(r"/(\d+) \[", text)[0] for text in (before, after))
    assert int(left) == int(planned) - 3


def test_a_dry_run_of_a_search_that_may_end_early_says_at_most(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    for gain, expected in ((0.0, f" {len(BLOCKS) + 5} x 1"), (0.01, f"at most {len(BLOCKS) + 5}")):
        params = write_tiny_params(tmp_path / "my.yaml", **PICTURES, search__min_expected_gain=gain)
        result = CliRunner().invoke(main, ["--params", str(params), "--dry-run"])
        assert result.exit_code == 0, result.output
        (candidates,) = [line for line in result.output.splitlines() if "candidates" in line]
        assert expected in candidates
        assert ("at most" in candidates) == (gain > 0)


def test_a_second_search_trains_nothing_and_finds_the_same_byte_for_byte(
    in_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*_: object) -> None:
        raise AssertionError("everything is in the store")

    monkeypatch.setattr("pipeline.trials.pool.WorkerPool.submit", no_training)
    names = ("best_plan.json", "evaluations.csv", "confirmations.csv", "metrics.json")
    options = ("--best-plan", "--evaluations", "--confirmations", "--metrics")
    words = [
        word
        for option, name in zip(options, names, strict=True)
        for word in (option, str(tmp_path / name))
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    for name in names:
        first = in_pipeline.artifacts / "search" / name
        assert (tmp_path / name).read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__backbone": "resnet5"}, "unknown backbone 'resnet5'"),
        ({"model__weights": "nothing.safetensors"}, "there is no file 'nothing.safetensors'"),
        ({"model__weights": "params.yaml"}, "params.yaml is not a state dict of plain tensors"),
        (
            {"model__weights": "artifacts/model/model.safetensors", "model__backbone": "resnet50"},
            "artifacts/model/model.safetensors does not fit resnet50",
        ),
        ({"runtime__device": "cuda:99"}, "runtime.device is 'cuda:99'"),
        ({"search__folds": 9}, "folds"),
    ],
)
def test_bad_params_are_one_message_before_any_training(
    in_pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    expected: str,
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.WorkerPool.submit", pytest.fail)
    params = write_tiny_params(tmp_path / "my.yaml", **changes)
    best = tmp_path / "best.json"
    result = CliRunner().invoke(main, ["--params", str(params), "--best-plan", str(best)])
    assert result.exit_code == 1
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not best.exists()


def test_a_place_that_cannot_be_written_to_is_said_before_any_training(
    in_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.trials.pool.WorkerPool.submit", pytest.fail)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["--best-plan", str(tmp_path / "file" / "best.json")])
    assert result.exit_code == 1
    assert "best.json cannot be written" in result.output


def test_other_labels_in_the_prepared_images_are_found(
    in_pipeline: Pipeline, tmp_path: Path
) -> None:
    other = tmp_path / "prepared"
    shutil.copytree(in_pipeline.artifacts / "prepared", other)
    samples = (other / "samples.csv").read_text()
    (other / "samples.csv").write_text(samples.replace(",3,", ",8,"))
    result = CliRunner().invoke(main, ["--prepared", str(other)])
    assert result.exit_code == 1
    assert "run the prepare stage again" in result.output


def test_an_unknown_key_reads_as_a_person_would_hope(tmp_path: Path) -> None:
    params = write_tiny_params(tmp_path / "my.yaml", search__populaton=5)
    result = CliRunner().invoke(main, ["--params", str(params)])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {params}: search.populaton: unknown key; did you mean 'population'?\n"
    )


def test_without_prepared_images_it_says_which_stage_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_params(tmp_path / "params.yaml")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "run the prepare stage first" in result.output


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert "Examples:" in result.output
    assert "biotune search --params my.yaml" in result.output
