"""What cannot be sent holds up nothing else, and what a server makes late is not there twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline import sync
from pipeline.tracking.database import make_database, own_database
from pipeline.tracking.delivery import Delivery, is_away
from pipeline.tracking.mlflow_runs import KEY_TAG
from pipeline.tracking.sender import Sender
from pipeline.tracking.spool import Spool, new_spool
from tests.mlflow_server import all_runs

START = {"pipeline": "p", "experiment": "e", "tags": {}, "params": {"a": "1"}}
CHILD = {"params": {"b": "2"}, "metrics": {"m": 1.0}, "curves": {}, "tags": {}, "seconds": 0}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database, made once."""
    home = tmp_path_factory.mktemp("made")
    make_database(own_database(home))
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(empty, tmp_path / "mlflow.db")
    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sync, "PAUSES", (0.0,))
    return tmp_path


def begun(home: Path, stage: str, **start: str) -> Spool:
    spool = new_spool(home, stage)
    spool.append("start", {**START, "stage": stage, **start})
    return spool


def with_file(home: Path, stage: str) -> Spool:
    """A stage that kept a file, and has ended."""
    spool = begun(home, stage)
    (home / "plan.json").write_text("{}")
    spool.append("file", {"file": spool.keep_file(home / "plan.json"), "folder": None})
    spool.append("metrics", {"after": 1.0})
    spool.append("end", {"status": "FINISHED"})
    return spool


def stages(home: Path) -> dict[str, Run]:
    runs = {run.info.run_name: run for run in all_runs(own_database(home))}
    return {name: run for name, run in runs.items() if not name.startswith("pipeline ")}


def files(home: Path) -> int:
    return len(list((home / "mlartifacts").rglob("plan.json")))


def test_a_file_that_is_gone_is_said_and_holds_up_nothing(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = with_file(home, "search")
    next(spool.folder.rglob("plan.json")).unlink()
    spool.close()
    with_file(home, "finetune").close()
    sync.run()
    assert "cannot go to MLflow (its file is gone)" in caplog.text
    found = stages(home)
    assert {name: run.info.status for name, run in found.items()} == {
        "search": "FINISHED",
        "finetune": "FINISHED",
    }
    assert found["search"].data.metrics == {"after": 1.0}
    assert not list((home / "spool").iterdir())


def test_a_file_that_cannot_be_stored_keeps_neither_its_run_open_nor_others_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("the bucket is not yours")

    with_file(home, "search").close()
    with_file(home, "finetune").close()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refused)
        with pytest.raises(sync.UnsentError, match=r"the bucket is not yours.*when that is mended"):
            sync.run()
    found = stages(home)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert {run.data.metrics["after"] for run in found.values()} == {1.0}
    assert len(list((home / "spool").iterdir())) == 2, "what is left is kept"
    assert files(home) == 0
    sync.run()
    assert files(home) == 2
    assert len(all_runs(own_database(home))) == 3
    assert not list((home / "spool").iterdir())


def test_a_stage_that_ends_closes_its_run_though_a_file_cannot_be_stored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("the bucket is not yours")

    monkeypatch.setattr(MlflowClient, "log_artifact", refused)
    sender = Sender(with_file(home, "search"), own_database(home), home)
    sender.start()
    sender.finish(60)
    assert stages(home)["search"].info.status == "FINISHED"
    assert sender.left == 1
    assert "the bucket is not yours" in str(sender.error)


@pytest.mark.parametrize(
    ("error", "asked"), [(ConnectionError("away"), 2), (MlflowException("bad experiment"), 2)]
)
def test_when_the_store_is_away_no_other_stage_is_tried(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, asked: int
) -> None:
    tried: list[str] = []

    def failing(own: Delivery, *_: object) -> None:
        tried.append(own.spool.name)
        raise error

    monkeypatch.setattr(Delivery, "_start", failing)
    for stage in ("search", "finetune"):
        with_file(home, stage).close()
    with pytest.raises(sync.UnsentError):
        sync.run()
    assert len(tried) == asked, "the first one, and once more after a pause"
    assert len(set(tried)) == 1


def test_what_mlflow_wraps_is_told_apart() -> None:
    def wrapped(error: Exception) -> BaseException:
        try:
            try:
                raise error
            except Exception as inner:
                raise MlflowException(f"failed with {inner}")  # noqa: B904 (as MLflow does)
        except MlflowException as outer:
            return outer

    assert is_away(ConnectionError())
    assert is_away(wrapped(TimeoutError()))
    assert not is_away(wrapped(ValueError()))
    assert not is_away(PermissionError())


def late(monkeypatch: pytest.MonkeyPatch, named: str) -> Callable[[], None]:
    """Creating a run seems to fail; what is returned has the server do it after all."""
    create, lost = MlflowClient.create_run, []

    def create_run(own: MlflowClient, *arguments: Any, **words: Any) -> Run:
        if words["tags"]["mlflow.runName"].startswith(named) and not lost:
            lost.append((own, arguments, words))
            raise ConnectionError("no answer")
        return create(own, *arguments, **words)

    def finish() -> None:
        ((own, arguments, words),) = lost
        create(own, *arguments, **words)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    return finish


@pytest.mark.parametrize("named", ["search", "one", "pipeline"])
def test_a_run_that_a_slow_server_makes_after_all_is_deleted(
    home: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    server_makes_it = late(monkeypatch, named)
    spool = begun(home, "search")
    for name in ("one", "two"):
        spool.append("child", {**CHILD, "name": name})
    delivery = Delivery(spool, own_database(home), home)
    sent = 0
    while sent < 3:
        try:
            sent += delivery.send_next()
        except ConnectionError:
            continue
    server_makes_it()
    everything = len(all_runs(own_database(home)))
    assert everything == 5, "one is there twice"
    spool.append("end", {"status": "FINISHED"})
    while delivery.send_next():
        pass
    runs = all_runs(own_database(home))
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    keys = [run.data.tags[KEY_TAG] for run in runs if KEY_TAG in run.data.tags]
    assert sorted(keys) == [f"{spool.name}/{number}" for number in range(3)]
    assert all(run.data.params for run in runs if KEY_TAG in run.data.tags), "those with content"
    client = MlflowClient(own_database(home))
    (experiment,) = {run.info.experiment_id for run in runs}
    (deleted,) = client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    assert deleted.info.run_name.startswith(named)


def test_a_stage_sends_what_was_left_only_where_it_was_meant_to_go(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, start in (
        ("search", {"destination": "http://theirs:5000"}),
        ("finetune", {"destination": "mlflow.db of the home"}),
        ("evaluate", {}),
    ):
        spool = begun(home, stage, **start)
        spool.append("end", {"status": "FINISHED"})
        spool.close()
    sender = Sender(begun(home, "export"), own_database(home), home)
    while sender._own.send_next() or sender._send_another():
        pass
    sender._let_go()
    assert stages(home).keys() == {"export", "finetune", "evaluate"}
    sync.run()
    assert stages(home).keys() == {"search", "export", "finetune", "evaluate"}
    said = capsys.readouterr().out
    assert "was to go to http://theirs:5000; it goes to mlflow.db of the home" in said
    assert said.count("was to go to") == 1
