"""``biotune inputs``: what the images and weights hold, for DVC to see."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.artifacts import FILES
from stages.options import StageCommand, out_option, params_option


@click.command("inputs", cls=StageCommand)
@params_option
@out_option("--image-list", FILES.image_list, "each image file, with its MD5")
@out_option("--weights-list", FILES.weights_list, "the same of a model.weights file")
def main(params_file: Path, image_list: Path, weights_list: Path) -> None:
    """List what the images and the pretrained weights hold, so that DVC sees what has changed.

    `dvc repro` runs it each time; a file that has not changed is not read again. It needs a DVC
    repository, the other stages don't need it.

    \b
    Examples:
      biotune inputs
      biotune inputs --params my.yaml
    """
    from pipeline.inputs import run

    run(params_file, image_list=image_list, weights_list=weights_list)


if __name__ == "__main__":
    main()
