"""``biotune ui``: look at every genome, run and metric in MLflow."""

from __future__ import annotations

import click


@click.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.pass_context
def main(ctx: click.Context, port: int) -> None:
    """Serve MLflow on what this machine has tracked, until Ctrl-C.

    \b
    Examples:
      biotune ui
      biotune ui --port 5001
    """
    from pipeline.tracking.ui import serve

    ctx.exit(serve(port))


if __name__ == "__main__":
    main()
