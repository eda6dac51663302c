"""What is found, made and cleared away in MLflow around a stage's own runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PIPELINE_TAG = "biotune.pipeline"
"""Tag of a pipeline's parent run: a hash of its parameters and data."""

KEY_TAG = "biotune.key"
"""Tag of every run: the spool and the record that it comes from, so that it is made once."""

_MADE_BY = "biotune.made_by"
"""Tag of a pipeline's run: the spool whose stage came first."""


def experiment_id(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The experiment of a name, made if it is not there.

    Args:
        client: of the store.
        name: of the experiment.
        artifacts: folder for the files of its runs; None for what the server says.

    Raises:
        PipelineError: if it was deleted.
    """
    known = client.get_experiment_by_name(name)
    if known is None:
        location = None if artifacts is None else artifacts.as_uri()
        return str(client.create_experiment(name, artifact_location=location))
    if known.lifecycle_stage != "active":
        raise PipelineError(
            f"the experiment {name!r} is deleted in MLflow: restore it there (mlflow "
            f"experiments restore -x {known.experiment_id}), or name another as "
            "tracking.experiment"
        )
    return str(known.experiment_id)


def pipeline_run(
    client: MlflowClient, experiment: str, identity: str, spool: str, tags: Mapping[str, str]
) -> str:
    """The run of a pipeline, made by the spool that comes first."""
    known = _tagged(client, experiment, f"tags.`{PIPELINE_TAG}` = '{identity}'")
    if known:
        # The oldest, so that all stages choose the same one if there should be two.
        first = min(known, key=lambda run: (run.info.status == "RUNNING", run.info.start_time))
        run_id, running = str(first.info.run_id), first.info.status == "RUNNING"
    else:
        own = {
            PIPELINE_TAG: identity,
            _MADE_BY: spool,
            "mlflow.runName": f"pipeline {identity[:8]}",
            **tags,
        }
        run_id, running = str(client.create_run(experiment, tags=own).info.run_id), True
    if running:  # no process spans a pipeline; nobody is left to end its run later
        client.set_terminated(run_id, "FINISHED")
    return run_id


def delete_twins(client: MlflowClient, experiment: str, spool: str, own: Sequence[str]) -> None:
    """Delete what a server has made of a request that it seemed not to have taken.

    A run whose creation was never answered is made again if it cannot be found; a server that was
    only slow may then make the first one after all. It is empty, and nobody would end it.

    Args:
        client: of the store.
        experiment: of all of these runs.
        spool: name of the one whose runs they are.
        own: the runs that are in use.
    """
    ours = _tagged(client, experiment, f"tags.`{KEY_TAG}` LIKE '{spool}/%'")
    by_key = sorted(ours, key=lambda run: run.data.tags[KEY_TAG])
    for _, same in groupby(by_key, key=lambda run: run.data.tags[KEY_TAG]):
        best_first = sorted(same, key=lambda run: (run.info.run_id not in own, *_emptiness(run)))
        for twin in best_first[1:]:
            client.delete_run(twin.info.run_id)
    for run in _tagged(client, experiment, f"tags.`{_MADE_BY}` = '{spool}'"):
        if run.info.run_id not in own and run.info.status == "RUNNING":
            client.delete_run(run.info.run_id)


def _emptiness(run: Run) -> tuple[bool, int]:
    return run.info.status == "RUNNING", -len(run.data.params)


def _tagged(client: MlflowClient, experiment: str, condition: str) -> list[Run]:
    """All runs that are so tagged."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
