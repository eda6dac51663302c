"""What all stage commands share: ``--params``, and errors that a person can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from biotune.commands.command import Command
from pipeline.artifacts import FILES
from pipeline.garbage import collect_garbage_seldom

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


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
    default=FILES.prepared,
    show_default=True,
    help="Folder that the prepare stage wrote.",
)


dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, say what it would take, and do nothing.",
)


def in_option(name: str, default: Path, what: str) -> Callable[[Decorated], Decorated]:
    """An option for a file that an earlier stage wrote."""
    return click.option(name, type=FILE, default=default, show_default=True, help=what)


def out_option(name: str, default: Path, what: str) -> Callable[[Decorated], Decorated]:
    """An option for a file that a stage writes."""
    return click.option(
        name, type=OUT_FILE, default=default, show_default=True, help=f"Writes {what}."
    )


class StageCommand(Command):
    """A command whose outputs are whole or not there."""

    after_a_signal = "Nothing half-written is left: run the same command again."

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        collect_garbage_seldom()
        return super().invoke(ctx)

    def foreseen(self) -> tuple[type[Exception], ...]:
        """The library's errors, and the pipeline's."""
        from pipeline.errors import PipelineError

        return (*super().foreseen(), PipelineError)


class ContainedCommand(StageCommand):
    """A stage that goes on in a container of its own where ``BIOTUNE_RUNTIME`` names an engine."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them, and keep them as they are."""
        ctx.meta["biotune.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def before(self, ctx: click.Context) -> None:
        """Go on there; does not return then.

        Raises:
            PipelineError: if it cannot.
        """
        from pipeline.containers.hand_over import hand_over

        paths = {True: list[Path](), False: list[Path]()}
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, Path):
                paths[isinstance(option.type, Written)].append(value)
        arguments = ctx.meta["biotune.arguments"]
        hand_over(self.name or "", arguments, reads=paths[False], writes=paths[True])


class ResumedCommand(ContainedCommand):
    """A command that can be run again to go on from where it was stopped."""

    after_a_signal = "What had finished is kept: run the same command again to go on from there."
