"""Every stage in a container: the host's results, the caller's files, signals and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.checkout import Clone, make_clone
from tests.containers.conftest import Reproduced, files
from tests.containers.engine import Engine
from tests.mlflow_server import all_runs

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

SAME = (
    "artifacts/prepared/images.npy",
    "artifacts/prepared/samples.csv",
    "artifacts/prepared/dataset.json",
    "artifacts/search/evaluations.csv",
    "artifacts/search/best_plan.json",
    "artifacts/model/model.safetensors",
    "artifacts/model/model.json",
)


@pytest.fixture
def stopped(reproduced: Reproduced) -> Iterator[Clone]:
    """The checkout with another, longer search, which will be stopped; as it was afterwards."""
    clone = reproduced.clone
    clone.set(search__population=20, search__epochs=40, search__seed=5)
    yield clone
    clone.set()


def test_containers_find_the_hosts_results_byte_for_byte(
    reproduced: Reproduced, tmp_path: Path
) -> None:
    host = make_clone(tmp_path, {})
    host.run("dvc", "repro", "finetune")
    for name in SAME:
        in_container = (reproduced.clone.folder / name).read_bytes()
        assert in_container == (tmp_path / name).read_bytes(), name


def test_every_file_is_the_callers_and_none_is_anywhere_else(reproduced: Reproduced) -> None:
    clone = reproduced.clone
    new = set(files(clone.folder)) - reproduced.files_before
    allowed = ("artifacts", ".biotune", ".dvc/cache", ".dvc/tmp", "dvc.lock")
    assert [name for name in new if not name.startswith(allowed)] == []
    assert "artifacts/deploy/model.onnx" in new
    for name in new:
        status = (clone.folder / name).lstat()
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid()), name


def test_a_second_repro_on_the_host_runs_nothing(reproduced: Reproduced) -> None:
    host = Clone(reproduced.clone.folder, {"BIOTUNE_RUNTIME": "host"})
    assert host.repro() == set()


def test_mlflow_knows_the_image_of_every_stage(engine: Engine, reproduced: Reproduced) -> None:
    runs = all_runs(f"sqlite:///{reproduced.clone.folder / '.biotune' / 'mlflow.db'}")
    stages = {
        run.data.tags["biotune.stage"]: run for run in runs if "biotune.stage" in run.data.tags
    }
    assert set(stages) == {"search", "finetune", "evaluate", "export"}
    image = f"sha256:{engine.inspect('biotune-pipeline')['Id']}"
    assert {run.data.tags["biotune.image"] for run in stages.values()} == {image}
    assert reproduced.clone.read("artifacts/lineage.json")["image"] == image


def test_the_artifacts_that_mlflow_names_are_there_on_the_host(reproduced: Reproduced) -> None:
    uri = f"sqlite:///{reproduced.clone.folder / '.biotune' / 'mlflow.db'}"
    (search,) = reproduced.clone.search_runs()
    files = MlflowClient(uri).list_artifacts(search.info.run_id, "plots")
    assert files


def test_a_failing_stage_ends_as_it_does_on_the_host(reproduced: Reproduced) -> None:
    command = ("python", "-m", "stages.finetune", "--best-plan", "nowhere.json")
    inside = reproduced.clone.attempt(*command)
    host = Clone(reproduced.clone.folder).attempt(*command)
    assert inside.returncode == host.returncode == 1
    assert inside.stderr == host.stderr
    assert "nowhere.json" in host.stderr


def test_an_image_of_another_lock_file_is_refused(engine: Engine, reproduced: Reproduced) -> None:
    lock = reproduced.clone.folder / "requirements.lock"
    kept = lock.read_bytes()
    try:
        lock.write_bytes(kept + b"# another\n")
        done = reproduced.clone.attempt("python", "-m", "stages.prepare")
    finally:
        lock.write_bytes(kept)
    assert done.returncode == 1
    assert "make images ENGINE=podman" in done.stderr
    assert engine.inspect("biotune-pipeline")["Labels"]["biotune.lock.sha256"][:12] in done.stderr


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")],
)
def test_a_signal_ends_the_stage_in_its_container(
    engine: Engine, stopped: Clone, sent: signal.Signals, code: int, said: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.search"],
        cwd=stopped.folder,
        env=stopped.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # as a terminal has it, whose Ctrl-C reaches the whole group
    )
    assert process.stdout is not None
    printed = ""
    while "Training on" not in printed:  # it is at work
        printed += process.stdout.readline()
        assert process.poll() is None, printed
    (running,) = engine.containers()
    (inspected,) = json.loads(engine.run("container", "inspect", running).stdout)
    assert inspected["HostConfig"]["NetworkMode"] == "none"
    assert inspected["HostConfig"]["ShmSize"] > 2**28
    assert inspected["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    os.killpg(process.pid, sent)
    printed += process.communicate(timeout=120)[0]
    assert process.returncode == code, printed
    assert said in printed
    assert engine.containers() == []
