"""From a spool to MLflow: every record once, however often it must be tried."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from filelock import FileLock

from pipeline.errors import PipelineError
from pipeline.registry import register
from pipeline.spool import Record, Spool

# MLflow reads these while it is imported, which is why it is imported in functions here. Users
# have patients' images: nothing is sent anywhere but to the tracking server they name.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# Two lines for every genome, in the midst of a progress bar.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The spool's own back-off is enough; the library's would hold up a stage that has come to its end.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

PIPELINE_TAG = "biotune.pipeline"
"""Tag of a pipeline's parent run: a hash of its parameters and data."""

KEY_TAG = "biotune.key"
"""Tag of every run: the spool and the record that it comes from, so that it is made once."""

_BATCH: Final = {"metrics": 1000, "params": 100}
"""Most of each that MLflow takes in one request."""

_REFUSED: Final = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
"""What MLflow says of a record that it will never take."""

Item = TypeVar("Item")


class Delivery:
    """Sends a spool's records, in their order, to one destination.

    What was half sent before is completed: runs are found by :data:`KEY_TAG`; and parameters, tags,
    metrics (a key, step and time have one value) and files are the same when they come twice.

    Args:
        spool: held by this process.
        uri: of MLflow's store.
        home: see :func:`pipeline.home.biotune_home`.
    """

    def __init__(self, spool: Spool, uri: str, home: Path) -> None:
        self.spool = spool
        self._uri, self._home = uri, home
        self._sent = spool.sent(uri)
        self._pending: Record | None = None
        self._started: tuple[MlflowClient, str, str] | None = None  # experiment, run
        self._doubtful = spool.inherited or self._sent > 0

    @property
    def left(self) -> int:
        """How many records have not arrived."""
        return self.spool.written - self._sent

    def send_next(self) -> bool:
        """Send one record; False if there is none that has not arrived.

        Raises:
            Exception: whatever MLflow says; the record is the next one again.
        """
        record = self._next()
        if record is None:
            return False
        try:
            self._send(record)
        except Exception as error:
            self._doubtful = True
            # The run itself must be there before anything else: that is tried again for ever.
            if getattr(error, "error_code", None) not in _REFUSED or record.kind == "start":
                raise
            self.spool.set_aside(record, str(error).partition("\n")[0])
        self._pending = None
        self._doubtful = self.spool.inherited
        if record.number >= self._sent:
            self._sent = record.number + 1
            self.spool.note_sent(self._sent, self._uri)
        return True

    def _next(self) -> Record | None:
        """The record to send: first of all the start, which says where the others go."""
        while self._pending is None:
            record = self.spool.next_record()
            if record is None:
                return None
            if record.number >= self._sent or (record.number == 0 and self.left):
                self._pending = record
        return self._pending

    def _send(self, record: Record) -> None:
        if record.kind == "damaged":
            self.spool.set_aside(record, "its checksum differs")
            return
        if record.kind == "start":
            self._started = self._start(record)
            return
        if self._started is None:
            raise ValueError(f"{self.spool.name} does not begin with its stage's start")
        client, experiment, run_id = self._started
        content = record.content
        if record.kind == "child":
            self._child(record, client, experiment, run_id)
        elif record.kind == "metrics":
            _log(client, run_id, metrics=_metrics(content, record.time))
        elif record.kind == "tags":
            _log(client, run_id, tags=content)
        elif record.kind == "file":
            file = self.spool.folder / content["file"]
            client.log_artifact(run_id, str(file), content["folder"])
        elif record.kind == "model":
            with self._lock():  # two exports at once must not both move an alias
                register(client, run_id, (KEY_TAG, self._key(record)), content)
        elif record.kind == "end":
            client.set_terminated(run_id, content["status"], content.get("time", record.time))

    def _start(self, record: Record) -> tuple[MlflowClient, str, str]:
        from mlflow import MlflowClient

        for chatty in ("alembic", "mlflow.store.db.utils"):  # hundreds of lines for a new database
            logging.getLogger(chatty).setLevel(logging.WARNING)
        content = record.content
        client = MlflowClient(self._uri)
        # Two stages that start at once must not both make the experiment, or their pipeline's run.
        with self._lock():
            experiment = self._experiment(client, content["experiment"])
            parent = _pipeline_run(client, experiment, content["pipeline"], content["tags"])
        tags = {
            "mlflow.parentRunId": parent,
            "mlflow.runName": content["stage"],
            "biotune.stage": content["stage"],
        }
        run_id = self._run(client, experiment, record, tags, record.time)
        _log(client, run_id, params=content["params"])
        return client, experiment, run_id

    def _child(self, record: Record, client: MlflowClient, experiment: str, parent: str) -> None:
        from mlflow.entities import Metric

        child = record.content
        begin = record.time - round(1000 * child["seconds"])
        tags = {"mlflow.runName": child["name"], "mlflow.parentRunId": parent, **child["tags"]}
        run_id = self._run(client, experiment, record, tags, begin)
        curves = [
            Metric(key, value, record.time, step)
            for key, values in child["curves"].items()
            for step, value in enumerate(values)
        ]
        metrics = [*_metrics(child["metrics"], record.time), *curves]
        _log(client, run_id, metrics=metrics, params=child["params"])
        client.set_terminated(run_id, "FINISHED", record.time)

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
            known = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if known:
                return str(known[0].info.run_id)
        made = client.create_run(experiment, start_time=begin, tags={**tags, KEY_TAG: key})
        return str(made.info.run_id)

    def _lock(self) -> FileLock:
        destination = hashlib.sha256(self._uri.encode()).hexdigest()[:8]
        return FileLock(self._home / f"mlflow-{destination}.lock")

    def _key(self, record: Record) -> str:
        return f"{self.spool.name}/{record.number}"

    def _experiment(self, client: MlflowClient, name: str) -> str:
        known = client.get_experiment_by_name(name)
        if known is None:
            own_files = self._uri.startswith("sqlite:")
            location = (self._home / "mlartifacts").as_uri() if own_files else None
            return str(client.create_experiment(name, artifact_location=location))
        if known.lifecycle_stage != "active":
            raise PipelineError(
                f"the experiment {name!r} is deleted in MLflow: restore it there (mlflow "
                f"experiments restore -x {known.experiment_id}), or name another as "
                "tracking.experiment"
            )
        return str(known.experiment_id)


def _pipeline_run(
    client: MlflowClient, experiment: str, identity: str, tags: Mapping[str, str]
) -> str:
    known = client.search_runs([experiment], f"tags.`{PIPELINE_TAG}` = '{identity}'", max_results=1)
    if known:
        run_id, running = str(known[0].info.run_id), known[0].info.status == "RUNNING"
    else:
        own = {PIPELINE_TAG: identity, "mlflow.runName": f"pipeline {identity[:8]}", **tags}
        run_id, running = str(client.create_run(experiment, tags=own).info.run_id), True
    if running:  # no process spans a pipeline; nobody is left to end its run later
        client.set_terminated(run_id, "FINISHED")
    return run_id


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


def _metrics(values: Mapping[str, float], time: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, float(value), time, 0) for key, value in values.items()]


def send_all(delivery: Delivery, on_record: Callable[[], Any]) -> None:
    """Send what a spool holds, and remove it.

    Raises:
        Exception: whatever MLflow says; what has arrived is noted.
    """
    while delivery.send_next():
        on_record()
    delivery.spool.remove()
