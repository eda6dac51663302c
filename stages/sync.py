"""``biotune sync``: send to MLflow what could not be sent while the stages ran."""

from __future__ import annotations

import click

from stages.options import ResumedCommand


@click.command("sync", cls=ResumedCommand)
def main() -> None:
    """Send to MLflow what is kept because it did not answer.

    Every stage sends what earlier ones left; this is for when no stage is to come. It may be
    repeated and interrupted at will: every run, parameter and metric arrives once.

    \b
    Examples:
      biotune sync
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 biotune sync
    """
    from pipeline.sync import run

    run()


if __name__ == "__main__":
    main()
