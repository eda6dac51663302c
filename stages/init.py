"""``biotune init``: a params file to begin from."""

from __future__ import annotations

from pathlib import Path

import click

from stages.options import FILE, StageCommand


@click.command(cls=StageCommand)
@click.argument("preset", required=False)
@click.option(
    "--out", type=FILE, default=Path("params.yaml"), show_default=True, help="File to write."
)
def main(preset: str | None, out: Path) -> None:
    """Write a preset as params.yaml, or, without one, list them.

    Every key is written, with what it means; `default` is what the checkout came with. A
    params.yaml that is there is kept under another name.

    \b
    Examples:
      biotune init
      biotune init default
      biotune init images
      biotune init paper-flowers102 --out flowers.yaml
    """
    from pipeline.presets import describe_presets, write_preset

    if preset is None:
        describe_presets()
    else:
        write_preset(preset, out)


if __name__ == "__main__":
    main()
