"""What turns a stage's records into MLflow calls, so that each has its effect once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from filelock import FileLock

from pipeline.errors import PipelineError
from pipeline.tracking.database import database_lock, make_database
from pipeline.tracking.outbox import Record, StageRecords
from pipeline.tracking.registry import IMPORTING_MLFLOW, register

# MLflow reads these while it is imported, which is why it is imported in functions here. Users
# have patients' images: nothing is sent anywhere but to the tracking server they name.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# Two lines for every genome, in the midst of a progress bar.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Our own back-off is enough; the library's would hold up a stage that has come to its end.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

PIPELINE_TAG = "biotune.pipeline"
"""Tag of a pipeline's parent run: a hash of its parameters and data."""

KEY_TAG = "biotune.key"
"""Tag of every run: the stage and the record that it comes from, so that it is made once."""

_MADE_BY = "biotune.made_by"
"""Tag of a pipeline's run: the stage that came first."""

_BATCH: Final = {"metrics": 1000, "params": 100}
"""Most of each that MLflow takes in one request."""

_REFUSED: Final = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
"""What MLflow says of a record that it will never take."""

Item = TypeVar("Item")


class RefusedError(Exception):
    """A record can never be sent; the message says why."""


class MlflowStage:
    """A stage's run in one MLflow store, made and completed from its records, the start first.

    What was half done before is completed: runs are found by :data:`KEY_TAG`; and parameters, tags,
    metrics (a key, step and time have one value) and files are the same when they come twice.

    Args:
        stage: its records; held by this process.
        uri: of MLflow's store.
        home: see :func:`pipeline.home.biotune_home`.
    """

    def __init__(self, stage: StageRecords, uri: str, home: Path) -> None:
        self._stage, self._uri, self._home = stage, uri, home
        self._client: MlflowClient
        self._experiment = self._pipeline = self._run_id = ""
        self._doubtful = self._ever_doubtful = stage.taken

    def take(self, record: Record) -> None:
        """Do what a record says, whether or not that was tried before.

        Raises:
            RefusedError: if it can never be done.
            Exception: whatever MLflow, or the way to it, says.
        """
        try:
            if record.kind == "start":
                self._start(record)
            elif self._run_id:
                self._go_on(record)
            else:
                raise RefusedError("its stage's start is damaged")
        except Exception as error:
            self._doubtful = self._ever_doubtful = True
            # The run itself must be there before anything else: that is tried again for ever.
            if getattr(error, "error_code", None) in _REFUSED and record.kind != "start":
                raise RefusedError(str(error).partition("\n")[0]) from error
            raise
        self._doubtful = self._stage.taken

    def _start(self, record: Record) -> None:
        with IMPORTING_MLFLOW:
            from mlflow import MlflowClient

        content = record.content
        # Two stages that start at once must not both make the experiment, or their pipeline's run.
        with self._lock():
            make_database(self._uri)
            self._client = MlflowClient(self._uri)
            self._experiment = self._experiment_id(content["experiment"])
            self._pipeline = self._pipeline_run(content["pipeline"], content["tags"])
        tags = {
            "mlflow.parentRunId": self._pipeline,
            "mlflow.runName": content["stage"],
            "biotune.stage": content["stage"],
        }
        run_id = self._made_once(record, tags, record.time)
        _log(self._client, run_id, params=content["params"])
        self._run_id = run_id

    def _go_on(self, record: Record) -> None:
        client, run_id, content = self._client, self._run_id, record.content
        match record.kind:
            case "child":
                self._child(record)
            case "metrics":
                _log(client, run_id, metrics=_as_metrics(content, record.time))
            case "tags":
                _log(client, run_id, tags=content)
            case "file":
                file = self._stage.folder / content["file"]
                if not file.is_file():
                    raise RefusedError("its file is gone")
                client.log_artifact(run_id, str(file), content["folder"])
            case "model":
                with self._lock():  # two exports at once must not both move an alias
                    register(client, run_id, (KEY_TAG, self._key(record)), content)
            case "end":
                client.set_terminated(run_id, content["status"], record.time)
                if self._ever_doubtful:
                    self._delete_twins()
            case _:
                raise RefusedError("it is damaged")

    def _child(self, record: Record) -> None:
        from mlflow.entities import Metric

        child = record.content
        tags = {"mlflow.runName": child["name"], "mlflow.parentRunId": self._run_id}
        begin = record.time - round(1000 * child["seconds"])
        run_id = self._made_once(record, {**tags, **child["tags"]}, begin)
        curves = [
            Metric(key, value, record.time, step)
            for key, values in child["curves"].items()
            for step, value in enumerate(values)
        ]
        metrics = [*_as_metrics(child["metrics"], record.time), *curves]
        _log(self._client, run_id, metrics=metrics, params=child["params"])
        self._client.set_terminated(run_id, "FINISHED", record.time)

    def _made_once(self, record: Record, tags: Mapping[str, str], begin: int) -> str:
        """A record's run: the one that is there, or a new one."""
        key = self._key(record)
        if self._doubtful:
            for run in self._tagged(f"tags.`{KEY_TAG}` = '{key}'"):
                return str(run.info.run_id)
        tags = {**tags, KEY_TAG: key}
        made = self._client.create_run(self._experiment, start_time=begin, tags=tags)
        return str(made.info.run_id)

    def _experiment_id(self, name: str) -> str:
        """The experiment of a name, made if it is not there."""
        there = self._client.get_experiment_by_name(name)
        if there is None:
            own_files = self._uri.startswith("sqlite:")  # else the server says where they go
            location = (self._home / "mlartifacts").as_uri() if own_files else None
            return str(self._client.create_experiment(name, artifact_location=location))
        if there.lifecycle_stage != "active":
            raise PipelineError(
                f"the experiment {name!r} is deleted in MLflow: restore it there (mlflow "
                f"experiments restore -x {there.experiment_id}), or name another as "
                "tracking.experiment"
            )
        return str(there.experiment_id)

    def _pipeline_run(self, identity: str, tags: Mapping[str, str]) -> str:
        """The run of a pipeline, made by the stage that comes first."""
        there = self._tagged(f"tags.`{PIPELINE_TAG}` = '{identity}'")
        if there:
            # The oldest, so that all stages choose the same one if there should be two.
            run = min(there, key=lambda run: (run.info.status == "RUNNING", run.info.start_time))
        else:
            name = {"mlflow.runName": f"pipeline {identity[:8]}", _MADE_BY: self._stage.name}
            tags = {PIPELINE_TAG: identity, **name, **tags}
            run = self._client.create_run(self._experiment, tags=tags)
        if run.info.status == "RUNNING":  # no process spans a pipeline, to end its run later
            self._client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)

    def _delete_twins(self) -> None:
        """Delete what a server has made of a request that it seemed not to have taken.

        A run whose creation was never answered is made again if it cannot be found; a server that
        was only slow may then make the first one after all. It is empty, and nobody would end it.
        """
        in_use = (self._pipeline, self._run_id)
        used: set[str] = set()
        ours = self._tagged(f"tags.`{KEY_TAG}` LIKE '{self._stage.name}/%'")
        for run in sorted(ours, key=lambda run: (run.info.run_id not in in_use, _emptiness(run))):
            if run.data.tags[KEY_TAG] in used:
                self._client.delete_run(run.info.run_id)
            used.add(run.data.tags[KEY_TAG])
        for run in self._tagged(f"tags.`{_MADE_BY}` = '{self._stage.name}'"):
            if run.info.run_id not in in_use and run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)

    def _tagged(self, condition: str) -> list[Run]:
        """All runs that are so tagged."""
        return list(self._client.search_runs([self._experiment], condition, max_results=50_000))

    def _lock(self) -> FileLock:
        return database_lock(self._home, self._uri)

    def _key(self, record: Record) -> str:
        return f"{self._stage.name}/{record.number}"


def is_away(error: BaseException | None) -> bool:
    """Whether the store, or the way to it, is what failed, so that no other record would arrive."""
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout
    from sqlalchemy.exc import OperationalError

    away = (ConnectionError, TimeoutError, NoConnection, Timeout, OperationalError)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # MLflow wraps what it got
        if isinstance(error, away):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _emptiness(run: Run) -> tuple[bool, int]:
    return run.info.status == "RUNNING", -len(run.data.params)


def _log(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log any number of these, in as many requests as MLflow's limits ask for."""
    from mlflow.entities import Param, RunTag

    several = zip_longest(
        _portions(list(metrics), _BATCH["metrics"] - _BATCH["params"]),
        _portions([Param(key, value) for key, value in (params or {}).items()], _BATCH["params"]),
        fillvalue=(),
    )
    for some_metrics, some_params in several:
        client.log_batch(run_id, metrics=some_metrics, params=some_params)
    if tags:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _portions(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _as_metrics(values: Mapping[str, float], time: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, float(value), time, 0) for key, value in values.items()]
