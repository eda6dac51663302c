"""What all commands share: errors that a person can read, and signals that end them in order."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

import click


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as a scheduler or ``docker stop`` does."""


class Command(click.Command):
    """A command whose foreseen errors are one message, not a traceback.

    ``BIOTUNE_TRACEBACK=1`` shows the traceback, for whoever looks for a fault in the code. Ctrl-C
    ends it with exit code 130, SIGTERM with 143, as shells and schedulers expect.

    Attributes:
        after_a_signal: what is said when one of these has ended it.
    """

    after_a_signal: ClassVar[str] = ""

    def foreseen(self) -> tuple[type[Exception], ...]:
        """The errors that are no fault of the code."""
        return (ValueError, OSError)

    def before(self, ctx: click.Context) -> None:
        """Called before the command runs; its errors are the command's."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        logging.basicConfig(format="%(levelname)s: %(message)s")
        foreseen = self.foreseen()
        try:
            self.before(ctx)
            with _terminable():
                return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            terminated = isinstance(interruption, Terminated)
            said = f"{'Terminated' if terminated else 'Interrupted'}. {self.after_a_signal}"
            click.echo(said.rstrip(), err=True)
            ctx.exit(143 if terminated else 130)
        except foreseen as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # `… | head` has seen enough: Click ends quietly
            if os.environ.get("BIOTUNE_TRACEBACK"):
                raise
            raise click.ClickException(str(error)) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is an exception in here, so that everything is left as it should be."""

    def terminate(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):  # C++ code may make an abort of an exception, and nothing is begun
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
