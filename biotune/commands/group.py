"""The ``biotune`` command group of the library. A command's work is imported when it is run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

import biotune
from biotune.commands import predict, serve, verify

COMMANDS = (predict, verify, serve)


@click.group()
@click.version_option(biotune.__version__)
def main() -> None:
    """Use a classifier that BioTune exported: raw images in, class names and probabilities out.

    \b
    Examples:
      biotune predict model.onnx photos/
      biotune verify model.onnx
      biotune serve model.onnx
    """


def run() -> None:
    """What the installed script calls: in a checkout the group with the stages, else this one."""
    checkout = Path(biotune.__file__).resolve().parents[1]
    # Looked for beside this package: another one called `stages` may be installed.
    if (checkout / "stages" / "cli.py").is_file() and (checkout / "dvc.yaml").is_file():
        import_module("stages.cli").main()
    else:
        main()


for _command in COMMANDS:
    main.add_command(_command.main, _command.__name__.rpartition(".")[2])
