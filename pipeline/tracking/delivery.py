"""From a spool to MLflow: every record once, however often it must be tried."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from filelock import FileLock

from pipeline.tracking.database import database_lock, destination, make_database
from pipeline.tracking.mlflow_runs import KEY_TAG, delete_twins, experiment_id, pipeline_run
from pipeline.tracking.records import Record
from pipeline.tracking.registry import register
from pipeline.tracking.spool import Spool

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

_BATCH: Final = {"metrics": 1000, "params": 100}
"""Most of each that MLflow takes in one request."""

_REFUSED: Final = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
"""What MLflow says of a record that it will never take."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Started:
    """Where a spool's records go; the parent is the pipeline's run."""

    client: MlflowClient
    experiment: str
    parent: str
    run: str

    def delete_twins(self, spool: str) -> None:
        delete_twins(self.client, self.experiment, spool, (self.parent, self.run))


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
        self._destination = destination(uri, home)
        self._sent = spool.sent(self._destination)  # bytes, without gaps
        self._arrived = spool.lines_until(self._sent)  # records, whatever is put off between them
        self._put_off = False
        self._pending: Record | None = None
        self._started: _Started | None = None
        self._doubtful = self._ever_doubtful = spool.inherited or self._sent > 0

    @property
    def started(self) -> bool:
        """Whether the store has taken the run itself."""
        return self._started is not None

    @property
    def left(self) -> int:
        """How many records have not arrived."""
        return self.spool.written - self._arrived

    def send_next(self) -> bool:
        """Send one record; False if there is none that has not arrived or is put off.

        Raises:
            Exception: whatever MLflow says; the record is the next one again.
        """
        record = self._next()
        if record is None:
            return False
        try:
            self._send(record)
        except Exception as error:
            self._doubtful = self._ever_doubtful = True
            # The run itself must be there before anything else: that is tried again for ever.
            if getattr(error, "error_code", None) not in _REFUSED or record.kind == "start":
                raise
            self.spool.set_aside(record, str(error).partition("\n")[0])
        self._pending = None
        self._doubtful = self.spool.inherited
        if record.begin >= self._sent:
            self._arrived += 1
            if not self._put_off:
                self._sent = record.end
                self.spool.note_sent(self._sent, self._destination)
        return True

    def put_off(self, error: Exception) -> bool:
        """Go on without the record that failed, which stays in the spool; False if that is no use.

        One file that cannot be stored must not keep a run from its end.

        Args:
            error: what :meth:`send_next` raised.
        """
        if self._pending is None or self._pending.kind == "start" or is_away(error):
            return False
        self._pending, self._put_off = None, True
        return True

    def let_go(self) -> None:
        """Remove the spool, or leave what has not arrived to whoever comes next."""
        if self.left:
            self.spool.close()
        else:
            self.spool.remove()

    def _next(self) -> Record | None:
        """The record to send: first of all the start, which says where the others go."""
        while self._pending is None:
            record = self.spool.next_record()
            if record is None:
                return None
            if record.begin >= self._sent or (record.begin == 0 and self.left):
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
        there, content = self._started, record.content
        client, experiment, run_id = there.client, there.experiment, there.run
        if record.kind == "child":
            self._child(record, client, experiment, run_id)
        elif record.kind == "metrics":
            _log(client, run_id, metrics=_metrics(content, record.time))
        elif record.kind == "tags":
            _log(client, run_id, tags=content)
        elif record.kind == "file":
            self._file(record, client, run_id)
        elif record.kind == "model":
            with self._lock():  # two exports at once must not both move an alias
                register(client, run_id, (KEY_TAG, self._key(record)), content)
        elif record.kind == "end":
            self._end(record, there)

    def _file(self, record: Record, client: MlflowClient, run_id: str) -> None:
        file = self.spool.folder / record.content["file"]
        if file.is_file():
            client.log_artifact(run_id, str(file), record.content["folder"])
        else:
            self.spool.set_aside(record, "its file is gone")

    def _end(self, record: Record, there: _Started) -> None:
        content = record.content
        there.client.set_terminated(there.run, content["status"], content.get("time", record.time))
        if self._ever_doubtful:
            there.delete_twins(self.spool.name)

    def _start(self, record: Record) -> _Started:
        from mlflow import MlflowClient

        content = record.content
        # Two stages that start at once must not both make the experiment, or their pipeline's run.
        with self._lock():
            make_database(self._uri)
            client = MlflowClient(self._uri)
            artifacts = self._home / "mlartifacts" if self._uri.startswith("sqlite:") else None
            experiment = experiment_id(client, content["experiment"], artifacts)
            pipeline, tags = content["pipeline"], content["tags"]
            parent = pipeline_run(client, experiment, pipeline, self.spool.name, tags)
        tags = {
            "mlflow.parentRunId": parent,
            "mlflow.runName": content["stage"],
            "biotune.stage": content["stage"],
        }
        run_id = self._run(client, experiment, record, tags, record.time)
        _log(client, run_id, params=content["params"])
        return _Started(client, experiment, parent, run_id)

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
        return database_lock(self._home, self._uri)

    def _key(self, record: Record) -> str:
        return f"{self.spool.name}/{record.number}"


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
