"""Every genome in MLflow, read back through MLflow; and tracking never stops a stage."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from biotune.finetuning.fitness import TrainingTask
from pipeline import sync
from pipeline.evolving.loop import EvaluatedCandidate, SearchResult
from pipeline.params import Params
from pipeline.reporting.plots import search_figures
from pipeline.reporting.rows import evaluation_row
from pipeline.tracking import mlflow as receiving
from pipeline.tracking.genome import tracked_genome
from pipeline.tracking.mlflow import KEY_TAG, PIPELINE_TAG
from pipeline.tracking.stage_run import (
    TrackedRun,
    pipeline_id,
    tracked_stage,
    tracking_uri,
)
from tests.imports import ROOT
from tests.mlflow_server import MlflowServer, all_runs, metric_points
from tests.outbox import unsent
from tests.pipeline.trainings import Trainings, curve, whole_search

BASE_LR = 0.001


def genome_run(told: EvaluatedCandidate) -> TrackedRun:
    return tracked_genome(told, evaluation_row(told, 100), BASE_LR)


def search(params: Params, home: Path) -> SearchResult:
    """A whole search that trains nothing, tracked as the search stage does it."""

    def accuracy(task: TrainingTask) -> float:
        return 0.5 + 0.1 * sum(multiplier is None for multiplier in task.plan.values())

    with tracked_stage("search", params, "data", home) as tracked:
        result = whole_search(params.search, Trainings(lambda task: curve(accuracy(task))))
        for told in result.evaluated:
            tracked.child(genome_run(told))
        tracked.metrics({"fitness": result.winner.evaluation.fitness})
        tracked.figures(
            lambda: search_figures([evaluation_row(one, 100) for one in result.evaluated])
        )
    return result


def children(client: MlflowClient, parent: Run) -> list[Run]:
    return list(
        client.search_runs(
            [parent.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
            max_results=1000,
        )
    )


def pipelines(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("biotune")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{PIPELINE_TAG}` != ''")
    return list(found)


@pytest.fixture
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on SQLite."""
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running.uri


def test_a_search_is_in_a_real_server_genome_by_genome(
    server: str, default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    params = default_params.model_copy(
        update={"search": default_params.search.model_copy(update={"training_seeds": [0, 3]})}
    )
    result = search(params, tmp_path)
    assert not unsent(tmp_path), "all has arrived"
    assert not (tmp_path / "mlflow.db").exists()
    keys = [run.data.tags[KEY_TAG] for run in all_runs(server) if KEY_TAG in run.data.tags]
    assert len(set(keys)) == len(keys) == len(result.evaluated) + 1

    client = MlflowClient(server)
    (pipeline,) = pipelines(client)
    (stage,) = children(client, pipeline)
    assert stage.info.run_name == "search"
    assert stage.info.status == "FINISHED"
    assert stage.data.params["search.population"] == str(params.search.population)
    assert stage.data.metrics["fitness"] == pytest.approx(result.winner.evaluation.fitness)
    plots = {file.path for file in client.list_artifacts(stage.info.run_id, "plots")}
    assert plots == {
        "plots/fitness_by_generation.png",
        "plots/lr_multipliers.png",
        "plots/accuracy_against_parameters.png",
    }

    genomes = {run.data.tags["biotune.candidate"]: run for run in children(client, stage)}
    assert len(genomes) == len(result.evaluated)
    assert {len(one.runs) for one in result.evaluated} == {1, 2}, "racing leaves seeds out"
    for one in result.evaluated:
        run, candidate = genomes[str(one.candidate.id)], one.candidate
        assert run.info.status == "FINISHED"
        genes = [float(gene) for gene in run.data.params["genes"].strip("[]").split(",")]
        assert genes == pytest.approx(candidate.genome.to_list(), abs=1e-6)
        for position, (block, multiplier) in enumerate(candidate.plan.items()):
            assert run.data.params["mask"][position] == ("0" if multiplier is None else "1")
            assert float(run.data.params[f"lr_multiplier.{block}"]) == (multiplier or 0)
            rate = float(run.data.params[f"lr.{block}"])
            assert rate == pytest.approx((multiplier or 0) * BASE_LR, rel=1e-5)
        assert run.data.params["generation"] == str(candidate.generation)
        assert run.data.params["origin"] == candidate.origin
        assert run.data.params["parents"] == (" ".join(map(str, candidate.parents)) or "none")
        assert run.data.metrics["fitness"] == pytest.approx(candidate.fitness)
        assert run.data.metrics["trained_parameters"] == 10
        assert run.data.metrics["trained_share"] == pytest.approx(0.1)
        assert run.data.metrics["seconds"] == pytest.approx(0.5 * len(one.runs))
        assert candidate.evaluation is not None
        assert run.data.tags["biotune.outcome"] == candidate.evaluation.outcome
        for own in one.runs:
            seed = own.task.seed
            for name in ("train_loss", "validation_score"):
                history = client.get_metric_history(run.info.run_id, f"seed{seed}.{name}")
                points = sorted((point.step, point.value) for point in history)
                assert points == list(enumerate(getattr(own.curve, name)))


@pytest.mark.usefixtures("_own_store")
def test_without_a_server_runs_go_to_a_sqlite_file_in_the_home(
    default_params: Params, tmp_path: Path
) -> None:
    result = search(default_params, tmp_path)
    with tracked_stage("finetune", default_params, "data", tmp_path) as tracked:
        tracked.artifacts([Path(__file__)])
    client = MlflowClient(tracking_uri(tmp_path))
    (pipeline,) = pipelines(client)
    assert pipeline.data.tags[PIPELINE_TAG] == pipeline_id(default_params, "data")
    assert pipeline.info.status == "FINISHED"
    stages = {run.info.run_name: run for run in children(client, pipeline)}
    assert set(stages) == {"search", "finetune"}
    assert len(children(client, stages["search"])) == len(result.evaluated)
    assert list((tmp_path / "mlartifacts").rglob(Path(__file__).name))


@pytest.mark.usefixtures("_own_store")
def test_a_stage_that_fails_or_is_interrupted_does_not_stay_running(
    default_params: Params, tmp_path: Path
) -> None:
    for stage, error in (("search", ValueError("broken")), ("finetune", KeyboardInterrupt())):
        with (
            pytest.raises(type(error)),
            tracked_stage(stage, default_params, "data", tmp_path),
        ):
            raise error
    client = MlflowClient(tracking_uri(tmp_path))
    (pipeline,) = pipelines(client)
    status = {run.info.run_name: run.info.status for run in children(client, pipeline)}
    assert status == {"search": "FAILED", "finetune": "KILLED"}


@pytest.mark.usefixtures("_own_store")
def test_nothing_waits_for_mlflow_and_all_arrives_with_the_times_it_happened_at(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_database, may_answer = receiving.make_database, threading.Event()

    def slow(uri: str) -> None:
        assert may_answer.wait(timeout=60)
        make_database(uri)

    monkeypatch.setattr(receiving, "make_database", slow)
    with tracked_stage("search", default_params, "data", tmp_path) as tracked:
        for name in ("first", "second", "third"):
            tracked.child(TrackedRun(name, {}, {"fitness": 0.5}, {}, {}, seconds=2))
        assert not (tmp_path / "mlflow.db").exists(), "all three were taken while MLflow was away"
        happened = 1000 * time.time() + 1  # times are whole milliseconds
        time.sleep(0.01)
        may_answer.set()
    client = MlflowClient(tracking_uri(tmp_path))
    (pipeline,) = pipelines(client)
    (stage,) = children(client, pipeline)
    assert stage.info.status == "FINISHED"
    assert stage.info.start_time <= happened
    genomes = children(client, stage)
    assert {run.info.run_name for run in genomes} == {"first", "second", "third"}
    assert all(run.info.end_time <= happened for run in genomes)
    assert all(run.info.end_time - run.info.start_time == 2000 for run in genomes)


def test_a_server_that_is_away_is_said_and_what_it_did_not_take_is_sent_later_once(
    default_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path))
    result = search(default_params, tmp_path)
    assert result.winner
    assert "MLflow does not answer; what is tracked is kept and sent later" in caplog.text
    # The start, one for each genome, the metrics, three pictures, and the run's end.
    assert f"{len(result.evaluated) + 6} records of the search stage are not in" in caplog.text
    with pytest.raises(sync.UnsentError, match=r"not everything was sent to http://127\.0\.0\.1:9"):
        sync.run()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    sync.run()
    sync.run()
    assert "Nothing is left to be sent" in capsys.readouterr().out
    client = MlflowClient(tracking_uri(tmp_path))
    (pipeline,) = pipelines(client)
    (stage,) = children(client, pipeline)
    assert stage.info.status == "FINISHED"
    genomes = children(client, stage)
    assert len(genomes) == len(result.evaluated)
    points = [metric_points(tracking_uri(tmp_path), run) for run in genomes]
    by_id = {
        int(run.data.tags["biotune.candidate"]): n for run, n in zip(genomes, points, strict=True)
    }
    for one in result.evaluated:
        curves = 3 * sum(len(run.curve.validation_score) for run in one.runs)
        scores = sum(
            value is not None for value in (one.candidate.fitness, one.candidate.evaluation.brier)
        )  # type: ignore[union-attr]
        assert by_id[one.candidate.id] == curves + scores + 3  # parameters, their share, seconds


@pytest.mark.usefixtures("_own_store")
def test_a_stage_closes_what_a_killed_one_left_running(
    default_params: Params, tmp_path: Path
) -> None:
    script = f"""
import os, signal, time
from pathlib import Path
from pipeline.params import load_params
from pipeline.tracking.stage_run import TrackedRun, tracked_stage
from tests.outbox import unsent
home = Path({str(tmp_path)!r})
with tracked_stage("search", load_params(Path("params.yaml")), "data", home) as tracked:
    tracked.child(TrackedRun("first", {{}}, {{"fitness": 0.5}}, {{}}, {{}}, seconds=2))
    while unsent(home)[0][1]:
        time.sleep(0.1)
    tracked.child(TrackedRun("second", {{}}, {{"fitness": 0.5}}, {{}}, {{}}, seconds=2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT)
    assert killed.returncode == -9, killed.stderr
    running = [run for run in all_runs(tracking_uri(tmp_path)) if run.info.status == "RUNNING"]
    assert "search" in {run.info.run_name for run in running}
    with tracked_stage("finetune", default_params, "data", tmp_path):
        wait_until(lambda: len(unsent(tmp_path)) == 1)
    status = {run.info.run_name: run.info.status for run in all_runs(tracking_uri(tmp_path))}
    identity = pipeline_id(default_params, "data")
    assert status == {
        f"pipeline {identity[:8]}": "FINISHED",
        "search": "KILLED",
        "first": "FINISHED",
        "second": "FINISHED",
        "finetune": "FINISHED",
    }
    assert len(all_runs(tracking_uri(tmp_path))) == 5


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pipeline_is_told_from_another_by_params_and_data_but_not_by_the_machine(
    default_params: Params,
) -> None:
    own = pipeline_id(default_params, "data")
    more_workers = default_params.runtime.model_copy(update={"workers": 7})
    other_search = default_params.search.model_copy(update={"seed": 1})
    assert own == pipeline_id(default_params.model_copy(update={"runtime": more_workers}), "data")
    assert own != pipeline_id(default_params.model_copy(update={"search": other_search}), "data")
    assert own != pipeline_id(default_params, "other data")


def test_store_hits_and_repeats_are_tagged_and_take_no_time(default_params: Params) -> None:
    trainings = Trainings(lambda _: curve(0.5))
    first = whole_search(default_params.search, trainings)
    again = whole_search(default_params.search, trainings)
    fresh = genome_run(first.evaluated[0])
    known = genome_run(again.evaluated[0])
    assert (fresh.tags["biotune.store_hit"], fresh.seconds) == ("false", 0.5)
    assert (known.tags["biotune.store_hit"], known.seconds) == ("true", 0.0)
    repeat = genome_run(replace(first.evaluated[1], repeat_of=0))
    assert repeat.tags["biotune.store_hit"] == "true"


@pytest.mark.usefixtures("_own_store")
def test_each_stages_run_names_the_image_that_it_ran_in(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage, image in (("finetune", "sha256:11"), ("evaluate", "sha256:22"), ("export", "")):
        monkeypatch.setenv("BIOTUNE_IMAGE_DIGEST", image)
        with tracked_stage(stage, default_params, "data", tmp_path):
            pass
    runs = {run.info.run_name: run.data.tags for run in all_runs(tracking_uri(tmp_path))}
    assert runs["finetune"]["biotune.image"] == "sha256:11"
    assert runs["evaluate"]["biotune.image"] == "sha256:22"
    assert "biotune.image" not in runs["export"]
