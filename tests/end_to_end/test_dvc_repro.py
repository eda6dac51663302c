"""``dvc repro`` in a clone: everything once, nothing twice, after a change just what it needs."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from mlflow import MlflowClient

from biotune.finetuning.backbones import block_sizes
from tests.checkout import Clone, make_clone
from tests.tiny import BLOCKS, NETWORK, PICTURES, tiny_params

pytestmark = pytest.mark.timeout(1800)  # the first runs all stages, on a machine with other work


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The working tree as it is, run once; one of its images is a link to nothing."""
    copy = make_clone(tmp_path_factory.mktemp("clone"), PICTURES)
    (copy.folder / "data" / "0" / "gone.png").symlink_to("nowhere")
    assert copy.repro() == {"prepare", "search", "finetune", "evaluate", "export"}
    return copy


def test_the_first_repro_ends_with_a_verified_classifier(clone: Clone) -> None:
    metrics = clone.read("artifacts/evaluation/metrics.json")
    assert {"accuracy", "balanced_accuracy", "f1_macro"} <= metrics.keys()
    assert clone.read("artifacts/deploy/verification.json")["batch_1"]["label_agreement"] >= 0.999
    parameters = sum(block_sizes(NETWORK, 10).values())
    assert (clone.folder / "artifacts/deploy/model.onnx").stat().st_size > 4 * parameters


def test_a_second_repro_runs_nothing(clone: Clone) -> None:
    output = clone.run("dvc", "repro")
    assert re.findall(r"Running stage '(\w+)'", output) == ["inputs"]
    assert output.count("didn't change, skipping") == 5


def test_metrics_and_plots_show_what_was_found(clone: Clone) -> None:
    shown = clone.run("dvc", "metrics", "show")
    assert "artifacts/evaluation/metrics.json" in shown
    assert "balanced_accuracy" in shown
    clone.run("dvc", "plots", "show", "--out", "plots")
    page = (clone.folder / "plots" / "index.html").read_text()
    for name in ("confusion.csv", "evaluations.csv", "curves.csv"):
        assert name in page
    shutil.rmtree(clone.folder / "plots")


def test_each_search_run_in_mlflow_has_a_child_for_every_candidate(clone: Clone) -> None:
    (search,) = clone.search_runs()
    client = MlflowClient(f"sqlite:///{clone.folder / '.biotune' / 'mlflow.db'}")
    where = f"tags.`mlflow.parentRunId` = '{search.info.run_id}'"
    children = client.search_runs([search.info.experiment_id], where)
    evaluations = (clone.folder / "artifacts/search/evaluations.csv").read_text().splitlines()
    assert len(children) == len(evaluations) - 1 == len(BLOCKS) + 5  # + N + 2E + N - E


def test_one_changed_parameter_reruns_just_the_stages_that_it_decides(clone: Clone) -> None:
    try:
        clone.set(export__min_label_agreement=0.99)
        assert clone.repro() == {"export"}
        clone.set(export__min_label_agreement=0.99, runtime__workers=1)
        assert clone.repro() == set()
        before = clone.read("artifacts/search/best_plan.json")
        clone.set(export__min_label_agreement=0.99, search__seed=1)
        ran = clone.repro()
        # Should another seed find the very same plan, nothing is trained below the search; but the
        # exported model says which parameters it came from.
        found_another = clone.read("artifacts/search/best_plan.json") != before
        assert ran == {"search", "export"} | ({"finetune", "evaluate"} if found_another else set())
    finally:
        clone.set()


def test_a_temporary_experiment_keeps_its_runs_and_finds_what_was_trained(clone: Clone) -> None:
    clone.run("git", "add", ".")
    clone.run("git", "commit", "--quiet", "-m", "The results")
    before = len(clone.search_runs())
    output = clone.run("dvc", "exp", "run", "--temp", "-S", "search.generations=0", "search")
    assert "Ran experiment" in output
    assert len(clone.search_runs()) == before + 1
    assert yaml.safe_load((clone.folder / "params.yaml").read_text()) == tiny_params(**PICTURES)
    shown = json.loads(clone.run("dvc", "exp", "show", "--json"))
    tried = [experiment["revs"][0]["data"]["params"] for experiment in shown[1]["experiments"]]
    assert [params["params.yaml"]["data"]["search"]["generations"] for params in tried] == [0]


def test_an_experiment_in_the_workspace_searches_with_its_parameter(clone: Clone) -> None:
    before = len(clone.search_runs())
    clone.run("dvc", "exp", "run", "--set-param", "search.population=3", "search")
    assert len(clone.search_runs()) == before + 1
    evaluations = (clone.folder / "artifacts/search/evaluations.csv").read_text().splitlines()
    assert len(evaluations) - 1 == len(BLOCKS) + 3 + 2 * 1 + 3 - 1  # + N + G (2E + N - E)
