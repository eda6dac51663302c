"""How records get to MLflow, and the thread that sends them while a stage runs."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Final

from pipeline.tracking.database import destination
from pipeline.tracking.mlflow import MlflowStage, RefusedError, is_away
from pipeline.tracking.outbox import Outbox, Record, StageRecords

log = logging.getLogger(__name__)

LONGEST_WAIT: Final = 60.0
"""Seconds that a stage waits at its end for a server, however much is still arriving."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
"""Seconds before an attempt that failed is made again; each pause is twice the one before."""


def drain(
    stage: StageRecords,
    here: str,
    take: Callable[[Record], None],
    again: Callable[[Exception], bool],
) -> Iterator[Exception | None]:
    """Send what has not arrived, in its order, and note what has.

    A record that fails is put off if it is not tried again: it stays, and those after it are sent.
    One that can never be sent is set aside.

    Args:
        stage: what is sent; from its position on, so that what was put off waits for another time.
        here: the destination, see :func:`pipeline.tracking.database.destination`.
        take: does what a record says, once, however often it is called; ``MlflowStage.take``.
        again: whether to try the record that failed with this error once more, after waiting for as
            long as it wants.

    Yields:
        None for each record that is done with, an error for each that is put off.

    Raises:
        Exception: what kept the stage's start from arriving, or the store is away: then no other
            record would arrive.
    """
    if not stage.left(here):
        return
    while (record := stage.next_unsent(here)) is not None:
        failed = None
        try:
            try:
                take(record)
            except RefusedError as refused:
                stage.set_aside(record, str(refused))
            stage.note_sent(record, here)
        except Exception as error:  # whatever MLflow, or the way to it, says
            if again(error):
                continue
            if record.kind == "start" or is_away(error):
                raise
            failed = error
        stage.position = record.number
        yield failed


class Sender(threading.Thread):
    """Sends a stage's records as they come, and, while there are none, what others left behind.

    Args:
        outbox: of the home.
        stage: the stage's own records.
        uri: where to send them; what others left is sent only if it was meant for the same store.
    """

    def __init__(self, outbox: Outbox, stage: StageRecords, uri: str) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._outbox, self._stage, self._uri = outbox, stage, uri
        self._here = destination(uri, outbox.home)
        self._take = MlflowStage(stage, uri, outbox.home).take
        self._others = self._send_others()
        self._pause = _FIRST_PAUSE
        self._more, self._closing = threading.Event(), threading.Event()
        self.error: Exception | None = None

    @property
    def left(self) -> int:
        """How many of the stage's own records have not arrived."""
        return self._stage.left(self._here)

    def notice(self) -> None:
        """There is something to send."""
        self._more.set()

    def finish(self, patience: float) -> None:
        """Send what is left of the stage's own, and end.

        What fails now is put off, unless the store is away: then nothing more is tried. If nothing
        arrives for so many seconds, the thread is left alone: it ends with the process, and what it
        has not sent is kept.
        """
        self._closing.set()
        self._more.set()
        longest = time.monotonic() + max(patience, LONGEST_WAIT)
        left, until = self.left, time.monotonic() + patience
        while self.is_alive() and time.monotonic() < min(until, longest):
            self.join(0.1)
            if self.left < left:
                left, until = self.left, time.monotonic() + patience

    def run(self) -> None:
        """Until all is sent and nothing more will come."""
        give_way()
        closing = False
        try:
            while not closing:
                self._more.clear()
                closing = self._closing.is_set()
                for failed in drain(self._stage, self._here, self._take, self._again):
                    if failed is None and not self._closing.is_set():
                        self.error, self._pause = None, _FIRST_PAUSE
                if not closing and not self._send_another():
                    self._more.wait()
        except Exception as error:  # the store is away, while there is no more time to wait for it
            self.error = error
        finally:
            self._others.close()
            self._stage.let_go(self._here)

    def _again(self, error: Exception) -> bool:
        self._say(error)
        if self._closing.is_set():
            return False
        self._closing.wait(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True

    def _send_another(self) -> bool:
        """Send one record of what another process left behind; False if there is none."""
        try:
            return next(self._others, False)
        except Exception as error:  # of the disk
            return self._say(error)

    def _send_others(self) -> Generator[bool, None, None]:
        for stage in self._outbox.left_behind():
            # Not to be sent wherever the variable points at now, unasked.
            if stage.destination != self._here:
                continue
            take = MlflowStage(stage, self._uri, self._outbox.home).take
            with suppress(Exception):  # which is said: the next stage may have more luck
                for _ in drain(stage, self._here, take, self._say):
                    yield True
            stage.let_go(self._here)

    def _say(self, error: Exception) -> bool:
        """Say it, if it was not said since something arrived; it is not to be tried again."""
        if self.error is None:
            log.warning(
                "MLflow does not answer; what is tracked is kept and sent later: %s",
                str(error).partition("\n")[0],
            )
        self.error = error
        return False


def give_way() -> None:
    """Leave the processors to the training workers while they need them."""
    if sys.platform == "linux":  # where threads have a priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
