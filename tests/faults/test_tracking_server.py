"""A tracking server that is away, killed, slow or broken: the search does not care, and afterwards
every run, parameter and metric is there once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from tests.faults.campaign import Place, Reference, Row, tracked, whole_campaign
from tests.faults.proxy import BadNetwork, Behaviour
from tests.mlflow_server import MlflowServer
from tests.outbox import unsent

Injected = Callable[..., Row]


def assert_all_is_there_once(place: Place, server: MlflowServer, reference: Reference) -> None:
    place.finish("sync", uri=server.uri)
    assert tracked(server.uri) == reference.tracked
    assert place.results() == reference.results
    assert not unsent(place.home)
    assert not (place.home / "refused.jsonl").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "server"
    made.mkdir()
    return made


def test_a_server_that_is_killed_half_way_and_comes_back(
    place: Place, reference: Reference, injected: Injected, folder: Path
) -> None:
    row = injected("MLflow server killed half-way, back later")
    with MlflowServer(folder) as server:
        run = place.search(server.uri)
        place.wait_for(4, run)
        server.kill()
        place.wait_for(10, run)
        server.start()
        assert run.wait() == 0, run.output
        assert_all_is_there_once(place, server, reference)
    row.survived = 1


@whole_campaign
def test_a_server_that_is_away_until_the_search_is_over(
    place: Place, reference: Reference, injected: Injected, folder: Path
) -> None:
    row = injected("MLflow server away from start to end, back for `biotune sync`")
    server = MlflowServer(folder)
    run = place.search(server.uri)
    assert run.wait() == 0, run.output
    assert "MLflow does not answer; what is tracked is kept" in run.output
    assert "the next stage sends them, or `biotune sync`" in run.output
    sync = place.start("sync", uri=server.uri)
    assert sync.wait() == 1
    assert "It is kept in" in sync.output
    with server:
        assert_all_is_there_once(place, server, reference)
    row.survived = 1


@whole_campaign
@pytest.mark.parametrize(
    ("behaviour", "fault"),
    [
        ("slow", "MLflow answers after 10 s each"),
        ("error", "MLflow answers 500 each time"),
        ("drop", "MLflow takes every third request and never answers"),
    ],
)
def test_a_network_that_is_slow_or_broken(
    place: Place,
    reference: Reference,
    injected: Injected,
    folder: Path,
    behaviour: Behaviour,
    fault: str,
) -> None:
    row = injected(fault)
    with MlflowServer(folder) as server, BadNetwork(server.uri, behaviour) as network:
        run = place.search(network.uri)
        assert run.wait() == 0, run.output
        seconds = time.monotonic() - run.begun
        assert network.requests
        if behaviour == "slow":  # each record takes two requests or more
            assert seconds < 20 * len(reference.tracked) / 2, "nobody waited for its answers"
        network.behaviour = "forward"
        place.finish("sync", uri=network.uri)
        assert_all_is_there_once(place, server, reference)
    row.survived = 1


@pytest.mark.slow
def test_a_server_that_makes_runs_after_their_requests_were_given_up(
    place: Place, reference: Reference, injected: Injected, folder: Path
) -> None:
    row = injected("MLflow makes runs a second after the connection broke")
    with MlflowServer(folder) as server, BadNetwork(server.uri, "late") as network:
        run = place.search(network.uri)
        assert run.wait() == 0, run.output
        place.finish("sync", uri=network.uri)
        assert network.created > 5
        client = MlflowClient(server.uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        twins = client.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY)
        assert 1 <= len(twins) <= 3, "one that came before it was asked for again is no twin"
        assert_all_is_there_once(place, server, reference)
    row.survived = 1


@whole_campaign
def test_sync_that_is_killed_at_any_moment_sends_nothing_twice(
    place: Place, reference: Reference, injected: Injected, folder: Path
) -> None:
    row = injected("kill -9 of `biotune sync`", 4)
    server = MlflowServer(folder)
    run = place.search(server.uri)
    assert run.wait() == 0, run.output
    with server:
        for moment in range(row.injected):
            sync = place.start("sync", uri=server.uri)
            while "record" not in sync.output and sync.process.poll() is None:
                time.sleep(0.02)
            time.sleep(0.3 * moment)
            sync.kill()
            sync.wait()
        assert_all_is_there_once(place, server, reference)
    row.survived = row.injected
