"""What goes to MLflow: a run for each pipeline, below it its stages, below search its genomes.

Tracking can never stop a stage: the first error is said, the rest of the stage goes untracked, and
the stage's files say everything that MLflow would have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.params import Params

# MLflow reads these while it is imported, which is why it is imported in functions here. Users
# have patients' images: nothing is sent anywhere but to the tracking server they name.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

PIPELINE_TAG = "biotune.pipeline"
"""Tag of a pipeline's parent run: a hash of its parameters and data."""


@dataclass(frozen=True)
class TrackedRun:
    """One genome's run: what it was, and how it went.

    Attributes:
        name: shown in the UI.
        params: facts known before training.
        metrics: last values.
        curves: metric name → value after each epoch.
        tags: origin, outcome and the like.
        seconds: how long it trained; the run is dated back by as much.
    """

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Iterable[float]]
    tags: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class _Destination:
    """Where a stage's records go."""

    client: MlflowClient
    experiment: str
    run_id: str


class StageRun:
    """The MLflow run of one stage; made by :func:`tracked_stage`.

    Records are sent in their order by a thread of their own, so that no training waits for a
    database or a network.
    """

    def __init__(self, sender: Executor, start: Callable[[], _Destination]) -> None:
        self._sender = sender
        self._destination = sender.submit(start)
        self._reachable = True
        self.untracked = 0

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log final figures, nested ones under dotted names; what is no number is left out."""
        numbers = _numbers(metrics)
        self._send(lambda to: to.client.log_batch(to.run_id, _metrics(numbers)))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Say of the stage's run what is no number."""

        def send(to: _Destination) -> None:
            from mlflow.entities import RunTag

            entries = [RunTag(key, value) for key, value in tags.items()]
            to.client.log_batch(to.run_id, tags=entries)

        self._send(send)

    def artifacts(self, files: Iterable[Path]) -> None:
        """Upload files; they must stay until the stage's end."""
        for file in files:
            self._send(lambda to, file=file: to.client.log_artifact(to.run_id, str(file)))  # type: ignore[misc]

    def figures(self, draw: Callable[[], Mapping[str, Figure]]) -> None:
        """Draw pictures, file name → matplotlib figure, and upload them."""

        def send(to: _Destination) -> None:
            for name, figure in draw().items():
                to.client.log_figure(to.run_id, figure, f"plots/{name}")

        self._send(send)

    def child(self, run: TrackedRun) -> None:
        """Add a finished run below this one."""
        end = _now()
        self._send(lambda to: _log_child(to, run, end))

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        end = _now()
        self._send(lambda to: to.client.set_terminated(to.run_id, status, end))

    def _send(self, request: Callable[[_Destination], object]) -> None:
        self._sender.submit(self._try, request)

    def _try(self, request: Callable[[_Destination], object]) -> None:
        """Do it, or say once that MLflow cannot be reached and leave it from then on."""
        if not self._reachable:
            self.untracked += 1
            return
        try:
            request(self._destination.result())
        except Exception as error:  # whatever goes wrong there must not stop a training
            log.warning("MLflow does not answer, this stage goes on untracked: %s", error)
            self._reachable = False
            self.untracked += 1


@contextmanager
def tracked_stage(stage: str, params: Params, fingerprint: str, home: Path) -> Iterator[StageRun]:
    """The run of one stage, below the run of its pipeline, which is made by whoever comes first.

    The store is ``MLFLOW_TRACKING_URI``, by default a SQLite file in the home folder. On leaving,
    what is still to be sent is waited for.

    Args:
        stage: ``search``, ``finetune``, ``evaluate`` or ``export``.
        params: all of ``params.yaml``; with the data they tell one pipeline from another.
        fingerprint: of the prepared images.
        home: see :func:`pipeline.home.biotune_home`.
    """
    with ThreadPoolExecutor(1, "mlflow", initializer=_give_way) as sender:
        run = StageRun(sender, partial(_start, stage, params, fingerprint, home, _now()))
        try:
            yield run
        except BaseException as error:
            run.end("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        run.end("FINISHED")
    if run.untracked:
        log.warning("%d records of the %s stage are not in MLflow", run.untracked, stage)


def _give_way() -> None:
    """Leave the processors to the training workers while they need them."""
    if sys.platform == "linux":  # where threads have a priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def tracking_uri(home: Path) -> str:
    """Where runs go."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def pipeline_id(params: Params, fingerprint: str) -> str:
    """Hash of a pipeline's parameters and data, 16 hex digits.

    The machine's section is left out: the same search on another number of workers is the same.
    """
    described = params.model_dump(mode="json", exclude={"runtime", "tracking"})
    text = json.dumps([described, fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _start(stage: str, params: Params, fingerprint: str, home: Path, begin: int) -> _Destination:
    from mlflow import MlflowClient
    from mlflow.entities import Param

    for chatty in ("alembic", "mlflow.store.db.utils"):  # hundreds of lines for a new database
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A server that is away must cost seconds, not the library's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    client = MlflowClient(tracking_uri(home))
    experiment = _experiment(client, params.tracking.experiment, home)
    parent = _pipeline_run(client, experiment, pipeline_id(params, fingerprint))
    tags = {"mlflow.parentRunId": parent, "mlflow.runName": stage, "biotune.stage": stage}
    run_id = client.create_run(experiment, start_time=begin, tags=tags).info.run_id
    section = params.model_dump(mode="json", include={stage, "model", "prepare", "runtime"})
    client.log_batch(
        run_id,
        params=[
            Param(f"{name}.{key}", str(value))
            for name, keys in section.items()
            for key, value in keys.items()
        ],
    )
    return _Destination(client, experiment, run_id)


def _log_child(to: _Destination, run: TrackedRun, end: int) -> None:
    from mlflow.entities import Metric, Param

    tags = {"mlflow.runName": run.name, "mlflow.parentRunId": to.run_id, **run.tags}
    start = end - round(1000 * run.seconds)
    created = to.client.create_run(to.experiment, start_time=start, tags=tags)
    curves = [
        Metric(key, value, end, step)
        for key, values in run.curves.items()
        for step, value in enumerate(values)
    ]
    to.client.log_batch(
        created.info.run_id,
        [*_metrics(run.metrics), *curves],
        [Param(key, value) for key, value in run.params.items()],
    )
    to.client.set_terminated(created.info.run_id, "FINISHED", end)


def _experiment(client: MlflowClient, name: str, home: Path) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    own_files = tracking_uri(home).startswith("sqlite:")
    location = (home / "mlartifacts").as_uri() if own_files else None
    return str(client.create_experiment(name, artifact_location=location))


def _pipeline_run(client: MlflowClient, experiment: str, identity: str) -> str:
    known = client.search_runs([experiment], f"tags.`{PIPELINE_TAG}` = '{identity}'", max_results=1)
    if known:
        return str(known[0].info.run_id)
    tags = {PIPELINE_TAG: identity, "mlflow.runName": f"pipeline {identity[:8]}", **_commit()}
    run_id = str(client.create_run(experiment, tags=tags).info.run_id)
    # No process spans a pipeline; nobody is left to end its run later.
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _commit() -> dict[str, str]:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return {}
    return {"mlflow.source.git.commit": asked.stdout.strip()} if asked.returncode == 0 else {}


def _metrics(metrics: Mapping[str, float]) -> list[Metric]:
    from mlflow.entities import Metric

    now = _now()
    return [Metric(key, float(value), now, 0) for key, value in metrics.items()]


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            flat[prefix + key] = value
    return flat


def _now() -> int:
    return round(1000 * time.time())
