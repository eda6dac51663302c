"""Every record has its effect once, what cannot be sent holds up nothing else, and what a server
makes late is not there twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline import sync
from pipeline.errors import PipelineError
from pipeline.tracking.database import make_database, own_database
from pipeline.tracking.mlflow import KEY_TAG, MlflowStage, is_away
from pipeline.tracking.outbox import Outbox, Record, StageRecords
from pipeline.tracking.sender import Sender, drain
from tests.mlflow_server import all_runs
from tests.outbox import unsent

HERE = "mlflow.db of the home"
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


@pytest.fixture
def outbox(home: Path) -> Iterator[Outbox]:
    with closing(Outbox(home)) as opened:
        yield opened


def begun(outbox: Outbox, stage: str, destination: str = HERE, **start: str) -> StageRecords:
    return outbox.begin(stage, destination, {**START, "stage": stage, **start})


def with_file(outbox: Outbox, stage: str, **start: str) -> StageRecords:
    """A stage that kept a file, has ended, and whose process has."""
    records = begun(outbox, stage, **start)
    (outbox.home / "plan.json").write_text("{}")
    place = records.keep_file(outbox.home / "plan.json")
    records.append("file", {"file": place, "folder": None})
    records.append("metrics", {"after": 1.0})
    records.append("end", {"status": "FINISHED"})
    records.lock.release()
    return records


def stages(home: Path) -> dict[str, Run]:
    runs = {run.info.run_name: run for run in all_runs(own_database(home))}
    return {name: run for name, run in runs.items() if not name.startswith("pipeline ")}


def files(home: Path) -> int:
    return len(list((home / "mlartifacts").rglob("plan.json")))


def refuse_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("the bucket is not yours")

    monkeypatch.setattr(MlflowClient, "log_artifact", refused)


def test_a_record_is_tried_as_often_as_wanted_then_put_off_for_another_time(
    outbox: Outbox,
) -> None:
    stage = with_file(outbox, "search")
    asked: list[int] = []

    def take(record: Record) -> None:
        asked.append(record.number)
        if record.kind == "file":
            raise PermissionError(f"no {len(asked)}")

    outcomes = list(drain(stage, HERE, take, lambda _: len(asked) < 4))
    assert asked == [0, 1, 1, 1, 2, 3], "in order"
    assert [str(failed) for failed in outcomes] == ["None", "no 4", "None", "None"]
    assert not list(drain(stage, HERE, take, lambda _: False)), "not at once again"
    for expected in ([0, 1], []):  # the start says where the file goes
        (again,) = outbox.left_behind()
        asked.clear()
        list(drain(again, HERE, lambda record: asked.append(record.number), lambda _: False))
        assert asked == expected


@pytest.mark.parametrize(
    ("kind", "error"), [("start", ValueError("no")), ("file", ConnectionError("away"))]
)
def test_without_its_start_or_the_store_nothing_more_of_a_stage_is_tried(
    outbox: Outbox, kind: str, error: Exception
) -> None:
    stage = with_file(outbox, "search")

    def take(record: Record) -> None:
        if record.kind == kind:
            raise error

    with pytest.raises(type(error)):
        list(drain(stage, HERE, take, lambda _: False))
    assert stage.left(HERE) == (4 if kind == "start" else 3)


@pytest.mark.parametrize("reason", ["its file is gone", "it is damaged", "Invalid value"])
def test_what_can_never_be_sent_is_said_set_aside_and_holds_up_nothing(
    outbox: Outbox, home: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    stage = with_file(outbox, "search")
    spoiled = {"it is damaged": ("file", b"{"), "Invalid value": ("metrics", b'{"//": 1}')}
    if reason in spoiled:
        update = "UPDATE records SET kind = ?, content = ? WHERE number = 1"
        outbox.execute(update, *spoiled[reason])
    else:
        next(stage.folder.rglob("plan.json")).unlink()
    with_file(outbox, "finetune")
    sync.run()
    assert f"of {stage.name} cannot go to MLflow ({reason}" in caplog.text
    refused = json.loads((home / "refused.jsonl").read_text())
    assert (refused["stage"], refused["number"]) == (stage.name, 1)
    assert ("b'{'" in refused["content"].values()) == (reason == "it is damaged"), "as it was"
    runs = stages(home)
    assert {name: run.info.status for name, run in runs.items()} == {
        "search": "FINISHED",
        "finetune": "FINISHED",
    }
    assert runs["search"].data.metrics == {"after": 1.0}
    assert not unsent(home)


def test_a_stage_whose_start_is_damaged_is_set_aside_whole(outbox: Outbox, home: Path) -> None:
    with_file(outbox, "search")
    outbox.execute("UPDATE records SET content = ? WHERE number = 0", b"{")
    sync.run()
    assert len((home / "refused.jsonl").read_text().splitlines()) == 4
    assert not unsent(home)


def test_a_file_that_cannot_be_stored_keeps_neither_its_run_open_nor_others_back(
    outbox: Outbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_file(outbox, "search")
    with_file(outbox, "finetune")
    with monkeypatch.context() as patch:
        refuse_files(patch)
        with pytest.raises(sync.UnsentError, match=r"the bucket is not yours.*when that is mended"):
            sync.run()
    runs = stages(home)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.metrics["after"] for run in runs.values()} == {1.0}
    assert [records for _, records in unsent(home)] == [1, 1], "what is left is kept"
    assert files(home) == 0
    sync.run()
    assert files(home) == 2
    assert len(all_runs(own_database(home))) == 3
    assert not unsent(home)


def test_a_stage_that_ends_closes_its_run_though_a_file_cannot_be_stored(
    outbox: Outbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_files(monkeypatch)
    sender = Sender(outbox, with_file(outbox, "search"), own_database(home))
    sender.start()
    sender.finish(60)
    assert stages(home)["search"].info.status == "FINISHED"
    assert sender.left == 1
    assert "the bucket is not yours" in str(sender.error)


@pytest.mark.parametrize(
    ("error", "stages_tried"),
    [
        (ConnectionError("away"), ["search"]),
        (MlflowException("bad experiment"), ["search"]),
        (PipelineError("this experiment is deleted"), ["search", "finetune"]),
    ],
)
def test_when_the_store_is_away_no_other_stage_is_tried(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, error: Exception, stages_tried: list[str]
) -> None:
    tried: list[str] = []

    def failing(_: MlflowClient, experiment: str) -> None:
        tried.append(experiment)
        raise error

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", failing)
    for stage in ("search", "finetune"):
        with_file(outbox, stage, experiment=stage)
    with pytest.raises(sync.UnsentError, match=str(error)):
        sync.run()
    assert tried == [stage for stage in stages_tried for _ in range(2)], "again after a pause"


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


def no_answer(monkeypatch: pytest.MonkeyPatch, named: str, *, made: bool) -> Callable[[], Run]:
    """Creating a run seems to fail, once; what is returned has the server do it after all.

    Args:
        monkeypatch: undoes it.
        named: how the run's name begins.
        made: whether the server has done it already.
    """
    create, lost = MlflowClient.create_run, []

    def create_run(*arguments: Any, **words: Any) -> Run:
        if words["tags"]["mlflow.runName"].startswith(named) and not lost:
            lost.append((arguments, words))
            if made:
                create(*arguments, **words)
            raise ConnectionError("no answer")
        return create(*arguments, **words)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    return lambda: create(*lost[0][0], **lost[0][1])


def runs_and_deleted(home: Path) -> tuple[list[Run], list[Run]]:
    runs = all_runs(own_database(home))
    client = MlflowClient(own_database(home))
    (experiment,) = {run.info.experiment_id for run in runs}
    deleted = client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    return runs, list(deleted)


@pytest.mark.parametrize(
    ("named", "made"),
    [("search", False), ("one", False), ("pipeline", False), ("search", True), ("one", True)],
)
def test_a_run_whose_creation_was_not_answered_is_there_once(
    outbox: Outbox, home: Path, monkeypatch: pytest.MonkeyPatch, named: str, made: bool
) -> None:
    """One that is there when it is asked for again is found; one that comes later is deleted."""
    server_makes_it = no_answer(monkeypatch, named, made=made)
    stage = begun(outbox, "search")
    for name in ("one", "two"):
        stage.append("child", {**CHILD, "name": name})
    take = MlflowStage(stage, own_database(home), home).take
    assert len(list(drain(stage, HERE, take, lambda _: True))) == 3
    if not made:
        server_makes_it()
    runs, deleted = runs_and_deleted(home)
    assert (len(runs), len(deleted)) == (4 if made else 5, 0)
    stage.append("end", {"status": "FINISHED"})
    assert list(drain(stage, HERE, take, lambda _: False)) == [None]
    runs, deleted = runs_and_deleted(home)
    assert {run.info.status for run in runs} == {"FINISHED"}
    keys = [run.data.tags[KEY_TAG] for run in runs if KEY_TAG in run.data.tags]
    assert sorted(keys) == [f"{stage.name}/{number}" for number in range(3)]
    assert len(runs) == 4
    assert all(run.data.params for run in runs if KEY_TAG in run.data.tags), "those with content"
    assert [run.info.run_name.startswith(named) for run in deleted] == [True] * (not made)


def test_what_another_process_may_have_sent_is_not_made_again(outbox: Outbox, home: Path) -> None:
    """It was killed after MLflow had taken the records and before it could note that."""
    stage = begun(outbox, "search")
    stage.append("child", {**CHILD, "name": "one"})
    list(drain(stage, HERE, MlflowStage(stage, own_database(home), home).take, lambda _: False))
    outbox.execute("UPDATE records SET sent = NULL")
    stage.lock.release()
    sync.run()
    runs, deleted = runs_and_deleted(home)
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", "KILLED"]
    assert not deleted


def test_a_stage_sends_what_was_left_only_where_it_was_meant_to_go(
    outbox: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, meant_for in (("search", "http://theirs:5000"), ("finetune", HERE)):
        begun(outbox, stage, meant_for).lock.release()
    own = begun(outbox, "export")
    sender = Sender(outbox, own, own_database(home))
    sender.start()
    while len(unsent(home)) > 2:
        assert sender.is_alive()
    own.append("end", {"status": "FINISHED"})
    sender.finish(60)
    assert stages(home).keys() == {"export", "finetune"}
    sync.run()
    assert stages(home).keys() == {"search", "export", "finetune"}
    said = capsys.readouterr().out
    assert "was to go to http://theirs:5000; it goes to mlflow.db of the home" in said
    assert said.count("was to go to") == 1
