"""The ``biotune`` command group. A command's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

import click

import biotune

LIBRARY: Final = ("predict", "verify", "serve")
"""The commands that come with the library."""

STAGES: Final = (
    *("init", "inputs", "prepare", "search", "finetune", "evaluate", "export"),
    *("backbones", "sync", "ui"),
)
"""Those that a checkout adds, each a module of its folder ``stages``."""

_USE: Final = """Use a classifier that BioTune exported: raw images in, class names and
probabilities out.

\b
Examples:
  biotune predict model.onnx photos/
  biotune verify model.onnx
  biotune serve model.onnx
"""

_MAKE: Final = """Evolve which blocks of a pretrained network to freeze and how fast the others
learn.

The stages, in order: inputs, prepare, search, finetune, evaluate, export. `dvc repro` runs those
that are not up to date; each can be run by hand. What they export is used by predict, verify and
serve.

\b
Examples:
  biotune search --help
  biotune prepare --params my.yaml && biotune search --params my.yaml
"""


class LazyGroup(click.Group):
    """A group whose commands' modules are imported one by one, as they are asked for.

    Args:
        modules: command's name → name of the module whose ``main`` it is, in the order of
            ``--help``.
        help: of the group.
    """

    def __init__(self, modules: Mapping[str, str], help: str) -> None:
        super().__init__("biotune", help=help)
        self.modules = dict(modules)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, with its module."""
        module = self.modules.get(cmd_name)
        if module is None:
            return None
        command: click.Command = import_module(module).main
        return command


def command_group(checkout: Path) -> LazyGroup:
    """The group of an installation: with the stages where there is a checkout of them.

    Args:
        checkout: the folder that this package lies in. Only there are stages looked for: another
            package called ``stages`` may be installed.
    """
    library = {name: f"biotune.commands.{name}" for name in LIBRARY}
    if not ((checkout / "stages").is_dir() and (checkout / "dvc.yaml").is_file()):
        return LazyGroup(library, _USE)
    return LazyGroup({**{name: f"stages.{name}" for name in STAGES}, **library}, _MAKE)


main = command_group(Path(biotune.__file__).resolve().parents[1])
click.version_option(biotune.__version__)(main)
