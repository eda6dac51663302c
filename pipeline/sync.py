"""Send to MLflow what could not be sent while the stages ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.home import biotune_home
from pipeline.reporting.console import print_table
from pipeline.tracking.database import destination
from pipeline.tracking.mlflow import MlflowStage
from pipeline.tracking.outbox import Outbox, Record, StageRecords
from pipeline.tracking.sender import drain
from pipeline.tracking.stage_run import tracking_uri

PAUSES: Final = (0.5, 1.0, 2.0)
"""Seconds before a record that failed is tried again: one may be the fault of the moment, several
of the same stage are not."""


class UnsentError(PipelineError):
    """MLflow did not take everything; what it did not take is kept."""


def run() -> None:
    """Send everything that is kept, and print what arrived.

    All goes to the store that MLFLOW_TRACKING_URI names now, also what was meant for another.

    Raises:
        UnsentError: if some of it did not arrive.
    """
    home = biotune_home()
    uri = tracking_uri(home)
    here = destination(uri, home)
    rows: list[tuple[str, int, int]] = []
    errors: list[Exception] = []
    away = False
    with closing(Outbox(home)) as outbox:
        for stage in outbox.left_behind():
            if stage.destination != here:
                print(f"{_name(stage)} was to go to {stage.destination}; it goes to {here}")
            before = stage.left(here)
            if not away:
                failed, away = _send(stage, here, MlflowStage(stage, uri, home).take)
                errors += failed
            left = stage.left(here)
            rows.append((_name(stage), before - left, left))
            stage.let_go(here)
    if not rows:
        print(f"Nothing is left to be sent to {here}.")
        return
    print_table(f"Sent to {here}", ["stage", "records sent", "left"], rows)
    if errors:
        raise UnsentError(
            f"not everything was sent to {here} ({str(errors[0]).partition(chr(10))[0]}). It is "
            f"kept in {outbox.folder}: run `biotune sync` again when that is mended; "
            "MLFLOW_TRACKING_URI names another store"
        )


def _send(
    stage: StageRecords, here: str, take: Callable[[Record], None]
) -> tuple[list[Exception], bool]:
    """Send a stage's records; what failed, and whether others need not be tried."""
    errors: list[Exception] = []
    pauses = iter(PAUSES)

    def again(_: Exception) -> bool:
        pause = next(pauses, None)
        time.sleep(pause or 0)
        return pause is not None

    with tqdm(total=stage.left(here), desc=_name(stage), unit="record") as bar:
        try:
            for failed in drain(stage, here, take, again):
                if failed is None:
                    bar.update()
                else:
                    errors.append(failed)
        except Exception as error:
            # What is wrong with one experiment says nothing of the next stage's.
            return [*errors, error], not isinstance(error, PipelineError)
    return errors, False


def _name(stage: StageRecords) -> str:
    """The stage that records are of, and when it started."""
    began, name, _ = stage.name.split("-")
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(began) / 1e9))
    return f"{name} of {started}"
