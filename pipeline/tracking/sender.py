"""The thread that sends a stage's records to MLflow while the stage goes on."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline.tracking.database import destination
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.registry import IMPORTING_MLFLOW
from pipeline.tracking.spool import Spool, left_behind

log = logging.getLogger(__name__)

LONGEST_WAIT: Final = 60.0
"""Seconds that a stage waits at its end for a server, however much is still arriving."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
"""Seconds before an attempt that failed is made again; each pause is twice the one before."""


class Sender(threading.Thread):
    """Sends a stage's records as they come, and, while there are none, what others left behind."""

    def __init__(self, spool: Spool, uri: str, home: Path) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._own, self._uri, self._home = Delivery(spool, uri, home), uri, home
        self._others: Iterator[Spool] | None = None
        self._other: Delivery | None = None
        self._more, self._closing = threading.Event(), threading.Event()
        self.error: Exception | None = None

    @property
    def left(self) -> int:
        """How many of the stage's own records have not arrived."""
        return self._own.left

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
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    self._more.clear()
                    closing = self._closing.is_set()
                    with IMPORTING_MLFLOW:
                        import mlflow  # noqa: F401
                    sent = self._own.send_next() or (not closing and self._send_another())
                    pause = _FIRST_PAUSE
                    if closing and not sent:
                        break
                    if not closing:
                        self.error = None
                    if not sent:
                        self._more.wait()
                except Exception as error:  # whatever goes wrong there must not stop a training
                    self._say(error)
                    if closing and self._own.put_off(error):
                        continue
                    if self._closing.wait(pause) and closing:
                        break
                    pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._let_go()

    def _send_another(self) -> bool:
        """One record of what another process left behind; False if there is none."""
        while (other := self._other or self._take_another()) is not None:
            try:
                if other.send_next():
                    return True
            except BaseException as error:
                if isinstance(error, Exception) and other.put_off(error):
                    raise
                other.spool.close()  # left to the next stage: it must not hold up the others
                self._other = None
                raise
            other.let_go()
            self._other = None
        return False

    def _take_another(self) -> Delivery | None:
        """Hold the next spool that was left behind on its way to the same store."""
        if self._others is None:
            self._others = left_behind(self._home)
        here = destination(self._uri, self._home)
        for spool in self._others:
            if spool.destination in (None, here):
                self._other = Delivery(spool, self._uri, self._home)
                return self._other
            spool.close()  # not to be sent wherever the variable points at now, unasked
        return None

    def _say(self, error: Exception) -> None:
        if self.error is None:
            log.warning(
                "MLflow does not answer; what is tracked is kept and sent later: %s",
                str(error).partition("\n")[0],
            )
        self.error = error

    def _let_go(self) -> None:
        if self._other is not None:
            self._other.spool.close()
        self._own.let_go()


def give_way() -> None:
    """Leave the processors to the training workers while they need them."""
    if sys.platform == "linux":  # where threads have a priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
