"""Send to MLflow what could not be sent while the stages ran."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from tqdm import tqdm

from pipeline.console import print_table
from pipeline.delivery import Delivery, send_all
from pipeline.errors import PipelineError
from pipeline.home import biotune_home
from pipeline.spool import left_behind
from pipeline.tracking import tracking_uri

PAUSES: Final = (0.5, 1.0, 2.0)
"""Seconds before a spool that failed is tried again."""


class UnsentError(PipelineError):
    """MLflow did not take everything; what it did not take is kept."""


def run() -> None:
    """Send everything that is kept, and print what arrived.

    Raises:
        UnsentError: if some of it did not arrive.
    """
    home = biotune_home()
    uri = tracking_uri(home)
    rows: list[tuple[str, int, int]] = []
    errors: list[Exception] = []
    for spool in left_behind(home):
        delivery = Delivery(spool, uri, home)
        before = delivery.left
        error = None if errors else _send(delivery)  # it would not answer the next one either
        if error is not None:
            errors.append(error)
        rows.append((_stage(spool.folder), before - delivery.left, delivery.left))
        if delivery.left:
            spool.close()
    if not rows:
        print(f"Nothing is left to be sent to {uri}.")
        return
    print_table(f"Sent to {uri}", ["stage", "records sent", "left"], rows)
    if errors:
        raise UnsentError(
            f"not everything was sent to {uri} ({errors[0]}). It is kept in {home / 'spool'}: "
            "run `biotune sync` again when MLflow answers, MLFLOW_TRACKING_URI names another"
        )


def _send(delivery: Delivery) -> Exception | None:
    """Send a spool; the error that stayed after the last pause."""
    error: Exception | None = None
    with tqdm(total=delivery.left, desc=_stage(delivery.spool.folder), unit="record") as bar:
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            try:
                send_all(delivery, bar.update)
                return None
            except Exception as failure:  # whatever MLflow, or the way to it, says
                error = failure
    return error


def _stage(folder: Path) -> str:
    """The stage that a spool is of, and when it started."""
    began, stage, _ = folder.name.split("-")
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(began) / 1e9))
    return f"{stage} of {started}"
