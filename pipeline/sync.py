"""Send to MLflow what could not be sent while the stages ran."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NoReturn

from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.home import biotune_home
from pipeline.reporting.console import print_table
from pipeline.tracking.database import destination
from pipeline.tracking.delivery import Delivery, is_away
from pipeline.tracking.spool import left_behind
from pipeline.tracking.stage_run import tracking_uri

PAUSES: Final = (0.5, 1.0, 2.0)
"""Seconds before a spool that failed is tried again."""


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
    for spool in left_behind(home):
        stage = _stage(spool.folder)
        if spool.destination not in (None, here):
            print(f"{stage} was to go to {spool.destination}; it goes to {here}")
        delivery = Delivery(spool, uri, home)
        before = delivery.left
        failed = [] if away else _send(delivery)
        errors += failed
        # What is wrong with one record, or one experiment, says nothing of the next stage's.
        for error in failed:
            at_start = not delivery.started and not isinstance(error, PipelineError)
            away = away or at_start or is_away(error)
        rows.append((stage, before - delivery.left, delivery.left))
        delivery.let_go()
    if not rows:
        print(f"Nothing is left to be sent to {here}.")
        return
    print_table(f"Sent to {here}", ["stage", "records sent", "left"], rows)
    if errors:
        raise UnsentError(
            f"not everything was sent to {here} ({str(errors[0]).partition(chr(10))[0]}). It is "
            f"kept in {home / 'spool'}: run `biotune sync` again when that is mended; "
            "MLFLOW_TRACKING_URI names another store"
        )


def _send(delivery: Delivery) -> list[Exception]:
    """Send what a spool holds; the errors of what cannot be sent now."""
    errors: list[Exception] = []
    with tqdm(total=delivery.left, desc=_stage(delivery.spool.folder), unit="record") as bar:
        while True:
            # One record that fails may be the fault of the moment, several are not.
            error = _send_until_it_fails(delivery, bar, () if errors else PAUSES)
            if error is None:
                return errors
            errors.append(error)
            if not delivery.put_off(error):
                return errors


def _send_until_it_fails(
    delivery: Delivery, bar: tqdm[NoReturn], pauses: tuple[float, ...]
) -> Exception | None:
    """Send one record after the other; the error that stayed after the last pause."""
    error: Exception | None = None
    for pause in (0.0, *pauses):
        time.sleep(pause)
        try:
            while delivery.send_next():
                bar.update()
            return None
        except Exception as failure:  # whatever MLflow, or the way to it, says
            error = failure
    return error


def _stage(folder: Path) -> str:
    """The stage that a spool is of, and when it started."""
    began, stage, _ = folder.name.split("-")
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(began) / 1e9))
    return f"{stage} of {started}"
