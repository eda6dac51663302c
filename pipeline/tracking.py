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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


class StageRun:
    """The MLflow run of one stage; made by :func:`tracked_stage`."""

    def __init__(self, client: MlflowClient | None, experiment: str, run_id: str) -> None:
        self._client = client
        self._experiment = experiment
        self._run_id = run_id
        self.untracked = 0

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log final figures, nested ones under dotted names; what is no number is left out."""
        self._send(lambda client: client.log_batch(self._run_id, _metrics(_numbers(metrics))))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Say of the stage's run what is no number."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items()]
        self._send(lambda client: client.log_batch(self._run_id, tags=entries))

    def artifacts(self, files: Iterable[Path]) -> None:
        """Upload files."""
        for file in files:
            self._send(lambda client, file=file: client.log_artifact(self._run_id, str(file)))  # type: ignore[misc]

    def figures(self, draw: Callable[[], Mapping[str, Figure]]) -> None:
        """Draw pictures, file name → matplotlib figure, and upload them."""

        def send(client: MlflowClient) -> None:
            for name, figure in draw().items():
                client.log_figure(self._run_id, figure, f"plots/{name}")

        self._send(send)

    def child(self, run: TrackedRun) -> None:
        """Add a finished run below this one."""
        self._send(lambda client: self._log_child(client, run))

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._send(lambda client: client.set_terminated(self._run_id, status))

    def _log_child(self, client: MlflowClient, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        end = _now()
        tags = {"mlflow.runName": run.name, "mlflow.parentRunId": self._run_id, **run.tags}
        created = client.create_run(self._experiment, start_time=end - round(1000 * run.seconds))
        curves = [
            Metric(key, value, end, step)
            for key, values in run.curves.items()
            for step, value in enumerate(values)
        ]
        client.log_batch(
            created.info.run_id,
            [*_metrics(run.metrics), *curves],
            [Param(key, value) for key, value in run.params.items()],
            [RunTag(key, value) for key, value in tags.items()],
        )
        client.set_terminated(created.info.run_id, "FINISHED", end)

    def _send(self, request: Callable[[MlflowClient], object]) -> None:
        """Do it, or say once that MLflow cannot be reached and leave it from then on."""
        if self._client is None:
            self.untracked += 1
            return
        try:
            request(self._client)
        except Exception as error:  # whatever goes wrong there must not stop a training
            log.warning("MLflow does not answer, this stage goes on untracked: %s", error)
            self._client = None
            self.untracked += 1


@contextmanager
def tracked_stage(stage: str, params: Params, fingerprint: str, home: Path) -> Iterator[StageRun]:
    """The run of one stage, below the run of its pipeline, which is made by whoever comes first.

    The store is ``MLFLOW_TRACKING_URI``, by default a SQLite file in the home folder.

    Args:
        stage: ``search``, ``finetune``, ``evaluate`` or ``export``.
        params: all of ``params.yaml``; with the data they tell one pipeline from another.
        fingerprint: of the prepared images.
        home: see :func:`pipeline.home.biotune_home`.
    """
    run = _start(stage, params, fingerprint, home)
    try:
        yield run
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.end("FINISHED")
    if run.untracked:
        log.warning("%d records of the %s stage are not in MLflow", run.untracked, stage)


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


def _start(stage: str, params: Params, fingerprint: str, home: Path) -> StageRun:
    from mlflow import MlflowClient
    from mlflow.entities import Param

    logging.getLogger("alembic").setLevel(logging.WARNING)  # hundreds of lines for a new database
    # A server that is away must cost seconds, not the library's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        client = MlflowClient(tracking_uri(home))
        experiment = _experiment(client, params.tracking.experiment, home)
        parent = _pipeline_run(client, experiment, pipeline_id(params, fingerprint))
        tags = {"mlflow.parentRunId": parent, "mlflow.runName": stage, "biotune.stage": stage}
        run_id = client.create_run(experiment, tags=tags).info.run_id
        section = params.model_dump(mode="json", include={stage, "model", "prepare", "runtime"})
        client.log_batch(
            run_id,
            params=[
                Param(f"{name}.{key}", str(value))
                for name, keys in section.items()
                for key, value in keys.items()
            ],
        )
    except Exception as error:  # as in _send
        log.warning("MLflow does not answer, the %s stage goes on untracked: %s", stage, error)
        return StageRun(None, "", "")
    return StageRun(client, experiment, run_id)


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
