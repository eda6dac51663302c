"""What all stage commands share: ``--params``, and errors that a person can read."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Written(click.Path):
    """A path that a stage writes, not one that it reads."""


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
OUT_FILE = Written(dir_okay=False, path_type=Path)
OUT_FOLDER = Written(file_okay=False, path_type=Path)

params_option = click.option(
    "--params",
    "params_file",
    type=FILE,
    default=Path("params.yaml"),
    show_default=True,
    help="Params file; every section is checked before any work.",
)

prepared_option = click.option(
    "--prepared",
    type=FOLDER,
    default=Path("artifacts/prepared"),
    show_default=True,
    help="Folder that the prepare stage wrote.",
)


dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, say what it would take, and do nothing.",
)


def in_option(name: str, default: str, what: str) -> Callable[[Command], Command]:
    """An option for a file that an earlier stage wrote."""
    return click.option(name, type=FILE, default=Path(default), show_default=True, help=what)


def out_option(name: str, default: str, what: str) -> Callable[[Command], Command]:
    """An option for a file that a stage writes."""
    return click.option(
        name, type=OUT_FILE, default=Path(default), show_default=True, help=f"Writes {what}."
    )


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as a scheduler or ``docker stop`` does."""


class StageCommand(click.Command):
    """A command whose foreseen errors are one message, not a traceback.

    ``BIOTUNE_TRACEBACK=1`` shows the traceback, for whoever looks for a fault in the code. Ctrl-C
    ends it with exit code 130, SIGTERM with 143, as shells and schedulers expect.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from pipeline.errors import PipelineError

        logging.basicConfig(format="%(levelname)s: %(message)s")
        try:
            self.enter_container(ctx)
            with _terminable():
                return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            terminated = isinstance(interruption, Terminated)
            click.echo(
                f"{'Terminated' if terminated else 'Interrupted'}. What had finished is kept: run "
                "the same command again to go on from there.",
                err=True,
            )
            ctx.exit(143 if terminated else 130)
        except (ValueError, OSError, PipelineError) as error:
            if os.environ.get("BIOTUNE_TRACEBACK"):
                raise
            raise click.ClickException(str(error)) from error

    def enter_container(self, ctx: click.Context) -> None:
        """Go on in a container, for a command that does."""


class ContainedCommand(StageCommand):
    """A stage that goes on in a container of its own where ``BIOTUNE_RUNTIME`` names an engine."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them, and keep them as they are."""
        ctx.meta["biotune.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def enter_container(self, ctx: click.Context) -> None:
        """Go on there; does not return then.

        Raises:
            PipelineError: if it cannot.
        """
        from pipeline.containers import hand_over

        paths = {True: list[Path](), False: list[Path]()}
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, Path):
                paths[isinstance(option.type, Written)].append(value)
        arguments = ctx.meta["biotune.arguments"]
        hand_over(self.name or "", arguments, reads=paths[False], writes=paths[True])


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is an exception in here, so that everything is left as it should be."""

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
