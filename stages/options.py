"""What all stage commands share: ``--params``, and errors that a person can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from biotune.commands.command import Command

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

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


def in_option(name: str, default: str, what: str) -> Callable[[Decorated], Decorated]:
    """An option for a file that an earlier stage wrote."""
    return click.option(name, type=FILE, default=Path(default), show_default=True, help=what)


def out_option(name: str, default: str, what: str) -> Callable[[Decorated], Decorated]:
    """An option for a file that a stage writes."""
    return click.option(
        name, type=FILE, default=Path(default), show_default=True, help=f"Writes {what}."
    )


class StageCommand(Command):
    """A command whose outputs are whole or not there."""

    after_a_signal = "Nothing half-written is left: run the same command again."

    def foreseen(self) -> tuple[type[Exception], ...]:
        """The library's, and the pipeline's own."""
        from pipeline.errors import PipelineError

        return (*super().foreseen(), PipelineError)


class ResumedCommand(StageCommand):
    """A command that can be run again to go on from where it was stopped."""

    after_a_signal = "What had finished is kept: run the same command again to go on from there."
