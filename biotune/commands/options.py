"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

DEVICES: Final = ("auto", "cpu", "cuda")

model_argument = click.argument("model", type=click.Path(dir_okay=False, path_type=Path))

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(DEVICES),
    help="What computes; auto is CUDA where ONNX Runtime has it.",
)
