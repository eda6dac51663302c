"""The ``biotune`` command group. The stages' modules import Click alone until one is run."""

from __future__ import annotations

import click

from biotune import __version__
from biotune.commands.group import COMMANDS
from stages import backbones, evaluate, export, finetune, init, inputs, prepare, search, sync, ui


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Evolve which blocks of a pretrained network to freeze and how fast the others learn.

    The stages, in order: inputs, prepare, search, finetune, evaluate, export. `dvc repro` runs
    those that are not up to date; each can be run by hand. What they export is used by predict,
    verify and serve.

    \b
    Examples:
      biotune search --help
      biotune prepare --params my.yaml && biotune search --params my.yaml
    """


STAGES = (init, inputs, prepare, search, finetune, evaluate, export, backbones, sync, ui)

for _command in (*STAGES, *COMMANDS):
    main.add_command(_command.main, _command.__name__.rpartition(".")[2])

if __name__ == "__main__":
    main()
