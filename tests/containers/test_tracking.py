"""The MLflow server of ``compose.yaml`` on a real PostgreSQL, and a stage in a container."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.checkout import Clone
from tests.containers.conftest import Reproduced
from tests.containers.engine import Engine
from tests.containers.postgres import Postgres, find_postgres, free_port
from tests.imports import ROOT
from tests.mlflow_server import all_runs, metric_points

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


class ServerInContainer:
    """What ``compose.yaml`` says of ``mlflow``, run by podman at a port of its own."""

    def __init__(self, engine: Engine, database: str, artifacts: Path) -> None:
        self._engine, self._database, self._artifacts = engine, database, artifacts
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["mlflow"]
        assert service["image"].endswith("biotune-pipeline}")
        program, *words = [*service["entrypoint"], *service["command"]]
        words = [word.replace(":5000", f":{self._port}") for word in words]
        words[words.index("--port=5000")] = f"--port={self._port}"
        self._engine.run(
            *("run", "--detach", "--rm", "--name", "biotune-test-mlflow", "--network", "host"),
            *("--volume", f"{self._artifacts}:/mlartifacts", "--entrypoint", program),
            *("--env", f"MLFLOW_BACKEND_STORE_URI={self._database}"),
            *("biotune-pipeline", *words, "--host=127.0.0.1"),
        )
        deadline = time.monotonic() + 180
        while self.status("127.0.0.1") != 200:
            assert time.monotonic() < deadline, self._engine.run("logs", "biotune-test-mlflow")
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop it as ``docker compose down`` does."""
        self._engine.run("stop", "--time", "20", "--ignore", "biotune-test-mlflow")
        self._engine.run("rm", "--force", "--ignore", "biotune-test-mlflow")

    def status(self, host: str) -> int:
        """Of its answer to a client that calls it by this name; 0 if there is none."""
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.uri}/api/2.0/mlflow/experiments/search?max_results=1",
            headers={"Host": f"{host}:{self._port}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    server = Postgres(binaries)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def server(
    engine: Engine, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerInContainer]:
    artifacts = tmp_path_factory.mktemp("mlartifacts")
    artifacts.chmod(0o777)  # as the volume is
    started = ServerInContainer(engine, postgres.uri, artifacts)
    started.start()
    yield started
    started.stop()


def test_it_answers_by_the_names_that_compose_lists_and_by_no_other(
    server: ServerInContainer,
) -> None:
    assert server.status("mlflow") == 200  # as the pipeline's container calls it
    assert server.status("localhost") == 200
    assert server.status("evil.example.org") == 403


def test_it_holds_the_runs_after_a_restart_of_both(
    reproduced: Reproduced, server: ServerInContainer, postgres: Postgres
) -> None:
    """A stage in its container, on the network because a server is named, tracks there."""
    clone = Clone(
        reproduced.clone.folder, {**reproduced.clone.variables, "MLFLOW_TRACKING_URI": server.uri}
    )
    clone.run("python", "-m", "stages.search")
    before = {run.info.run_id: run.data for run in all_runs(server.uri)}
    evaluations = (clone.folder / "artifacts/search/evaluations.csv").read_text().splitlines()
    assert len(before) == 2 + len(evaluations) - 1  # the pipeline, its search, every candidate
    (search,) = [run for run in all_runs(server.uri) if "biotune.stage" in run.data.tags]
    plots = [
        plot.path for plot in MlflowClient(server.uri).list_artifacts(search.info.run_id, "plots")
    ]
    points = metric_points(server.uri, search)
    assert plots
    assert points

    server.stop()
    postgres.stop()
    postgres.start()
    server.start()

    after = {run.info.run_id: run.data for run in all_runs(server.uri)}
    assert {key: data.to_dictionary() for key, data in after.items()} == {
        key: data.to_dictionary() for key, data in before.items()
    }
    client = MlflowClient(server.uri)
    assert [plot.path for plot in client.list_artifacts(search.info.run_id, "plots")] == plots
    assert Path(client.download_artifacts(search.info.run_id, plots[0])).stat().st_size > 0
    assert metric_points(server.uri, search) == points
