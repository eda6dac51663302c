"""``biotune prepare``: images in, arrays out."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.artifacts import FILES
from stages.options import FOLDER, OUT_FOLDER, ContainedCommand, dry_run_option, params_option


@click.command("prepare", cls=ContainedCommand)
@params_option
@dry_run_option
@click.option("--images", type=FOLDER, help="Where an image folder is.  [default: prepare.path]")
@click.option(
    "--out",
    type=OUT_FOLDER,
    default=FILES.prepared,
    show_default=True,
    help="Folder to write, replaced as a whole.",
)
def main(params_file: Path, dry_run: bool, images: Path | None, out: Path) -> None:
    """Split, decode and resize labelled images, once, for all later stages.

    \b
    Examples:
      biotune prepare
      biotune prepare --dry-run
      biotune prepare --params my.yaml --images data/flowers
    """
    from pipeline.params import load_params
    from pipeline.prepare import run

    params = load_params(params_file)
    if dry_run:
        from pipeline import dry_run as dry

        dry.prepare(params, images or Path(params.prepare.path))
        return
    run(params, images=images or Path(params.prepare.path), out=out)


if __name__ == "__main__":
    main()
