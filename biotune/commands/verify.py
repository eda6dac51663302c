"""``biotune verify``: whether an exported model is whole, and says here what it said there."""

from __future__ import annotations

from pathlib import Path

import click

from biotune.commands.command import Command
from biotune.commands.options import device_option, model_argument


@click.command(cls=Command)
@model_argument
@device_option
@click.pass_context
def main(ctx: click.Context, model: Path, device: str) -> None:
    """Check an exported MODEL against what was exported with it, which lies beside it.

    Is it the very file (SHA-256)? Are its class names those that it should have? Does it give, on
    this machine, the answers that it gave to the sample images when it was exported? The exit code
    is 1 if not.

    \b
    Examples:
      biotune verify model.onnx
      biotune verify artifacts/deploy/model.int8.onnx --device cpu
    """
    from biotune.deployment.bundle import check_bundle

    checks = check_bundle(model, device)
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{'ok   ' if check.passed else 'WRONG'} {check.name:<{width}}  {check.found}")
    good = all(check.passed for check in checks)
    click.echo(f"{model} is {'as it was exported' if good else 'NOT as it was exported'}.")
    ctx.exit(0 if good else 1)
