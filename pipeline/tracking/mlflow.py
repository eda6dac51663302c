"""What turns a stage's records into MLflow calls, so that each has its effect once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
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


@dataclass(frozen=True)
class _Started:
    """Where a stage's records go; the parent is the pipeline's run."""

    client: MlflowClient
    experiment: str
    parent: str
    run: str


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
        self._started: _Started | None = None
        self._doubtful = self._ever_doubtful = stage.taken
        self._by_kind = {
            "child": self._child,
            "metrics": self._metrics,
            "tags": self._tags,
            "file": self._file,
            "model": self._model,
            "end": self._end,
        }

    def take(self, record: Record) -> None:
        """Do what a record says, whether or not that was tried before.

        Raises:
            RefusedError: if it can never be done.
            Exception: whatever MLflow, or the way to it, says.
        """
        try:
            if record.kind == "start":
                self._started = self._start(record)
            elif record.kind not in self._by_kind:
                raise RefusedError("it is damaged")
            elif self._started is None:
                raise RefusedError("its stage's start is damaged")
            else:
                self._by_kind[record.kind](record, self._started)
        except Exception as error:
            self._doubtful = self._ever_doubtful = True
            # The run itself must be there before anything else: that is tried again for ever.
            if getattr(error, "error_code", None) in _REFUSED and record.kind != "start":
                raise RefusedError(str(error).partition("\n")[0]) from error
            raise
        self._doubtful = self._stage.taken

    def _start(self, record: Record) -> _Started:
        with IMPORTING_MLFLOW:
            from mlflow import MlflowClient

        content = record.content
        # Two stages that start at once must not both make the experiment, or their pipeline's run.
        with self._lock():
            make_database(self._uri)
            client = MlflowClient(self._uri)
            artifacts = self._home / "mlartifacts" if self._uri.startswith("sqlite:") else None
            experiment = _experiment_id(client, content["experiment"], artifacts)
            parent = self._pipeline_run(client, experiment, content["pipeline"], content["tags"])
        tags = {
            "mlflow.parentRunId": parent,
            "mlflow.runName": content["stage"],
            "biotune.stage": content["stage"],
        }
        run_id = self._run(client, experiment, record, tags, record.time)
        _log(client, run_id, params=content["params"])
        return _Started(client, experiment, parent, run_id)

    def _child(self, record: Record, to: _Started) -> None:
        from mlflow.entities import Metric

        child = record.content
        begin = record.time - round(1000 * child["seconds"])
        tags = {"mlflow.runName": child["name"], "mlflow.parentRunId": to.run, **child["tags"]}
        run_id = self._run(to.client, to.experiment, record, tags, begin)
        curves = [
            Metric(key, value, record.time, step)
            for key, values in child["curves"].items()
            for step, value in enumerate(values)
        ]
        metrics = [*_as_metrics(child["metrics"], record.time), *curves]
        _log(to.client, run_id, metrics=metrics, params=child["params"])
        to.client.set_terminated(run_id, "FINISHED", record.time)

    def _metrics(self, record: Record, to: _Started) -> None:
        _log(to.client, to.run, metrics=_as_metrics(record.content, record.time))

    def _tags(self, record: Record, to: _Started) -> None:
        _log(to.client, to.run, tags=record.content)

    def _file(self, record: Record, to: _Started) -> None:
        file = self._stage.folder / record.content["file"]
        if not file.is_file():
            raise RefusedError("its file is gone")
        to.client.log_artifact(to.run, str(file), record.content["folder"])

    def _model(self, record: Record, to: _Started) -> None:
        with self._lock():  # two exports at once must not both move an alias
            register(to.client, to.run, (KEY_TAG, self._key(record)), record.content)

    def _end(self, record: Record, to: _Started) -> None:
        to.client.set_terminated(to.run, record.content["status"], record.time)
        if self._ever_doubtful:
            self._delete_twins(to)

    def _run(
        self,
        client: MlflowClient,
        experiment: str,
        record: Record,
        tags: Mapping[str, str],
        begin: int,
    ) -> str:
        """A record's run: the one that is there, or a new one."""
        key = self._key(record)
        if self._doubtful:
            there = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if there:
                return str(there[0].info.run_id)
        made = client.create_run(experiment, start_time=begin, tags={**tags, KEY_TAG: key})
        return str(made.info.run_id)

    def _pipeline_run(
        self, client: MlflowClient, experiment: str, identity: str, tags: Mapping[str, str]
    ) -> str:
        """The run of a pipeline, made by the stage that comes first."""
        there = _tagged(client, experiment, f"tags.`{PIPELINE_TAG}` = '{identity}'")
        if there:
            # The oldest, so that all stages choose the same one if there should be two.
            first = min(there, key=lambda run: (run.info.status == "RUNNING", run.info.start_time))
        else:
            described = {PIPELINE_TAG: identity, _MADE_BY: self._stage.name, **tags}
            name = {"mlflow.runName": f"pipeline {identity[:8]}"}
            first = client.create_run(experiment, tags={**described, **name})
        run_id = str(first.info.run_id)
        if first.info.status == "RUNNING":  # no process spans a pipeline, nobody ends its run later
            client.set_terminated(run_id, "FINISHED")
        return run_id

    def _delete_twins(self, used: _Started) -> None:
        """Delete what a server has made of a request that it seemed not to have taken.

        A run whose creation was never answered is made again if it cannot be found; a server that
        was only slow may then make the first one after all. It is empty, and nobody would end it.
        """
        client, in_use = used.client, (used.parent, used.run)
        ours = _tagged(client, used.experiment, f"tags.`{KEY_TAG}` LIKE '{self._stage.name}/%'")
        by_key = sorted(ours, key=lambda run: run.data.tags[KEY_TAG])
        for _, same in groupby(by_key, key=lambda run: run.data.tags[KEY_TAG]):
            best_first = sorted(same, key=lambda run: (run.info.run_id not in in_use, _empty(run)))
            for twin in best_first[1:]:
                client.delete_run(twin.info.run_id)
        for run in _tagged(client, used.experiment, f"tags.`{_MADE_BY}` = '{self._stage.name}'"):
            if run.info.run_id not in in_use and run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)

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


def _experiment_id(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The experiment of a name, made if it is not there; ``artifacts`` is for its runs' files."""
    there = client.get_experiment_by_name(name)
    if there is None:
        location = None if artifacts is None else artifacts.as_uri()
        return str(client.create_experiment(name, artifact_location=location))
    if there.lifecycle_stage != "active":
        raise PipelineError(
            f"the experiment {name!r} is deleted in MLflow: restore it there (mlflow "
            f"experiments restore -x {there.experiment_id}), or name another as "
            "tracking.experiment"
        )
    return str(there.experiment_id)


def _tagged(client: MlflowClient, experiment: str, condition: str) -> list[Run]:
    """All runs that are so tagged."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _empty(run: Run) -> tuple[bool, int]:
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
