"""Where a stage runs: in which container, and where what outlives it is kept."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

IMAGE_VARIABLE: Final = "BIOTUNE_IMAGE_DIGEST"
"""Whatever starts a container says here which image it is of."""


def biotune_home(start: Path | None = None) -> Path:
    """The folder named by ``BIOTUNE_HOME``, by default ``.biotune`` at the main checkout's root.

    ``dvc exp run --temp`` and ``--queue`` work in throw-away copies of the checkout below its
    ``.dvc/tmp/exps``; they share the main checkout's home, so that nothing is lost with the copy.

    Args:
        start: the folder a stage runs in; default the current one.

    Raises:
        OSError: if it is no folder and cannot be made one, or cannot be written.
    """
    named = os.environ.get("BIOTUNE_HOME")
    if named:
        home = Path(named).expanduser().resolve()
    else:
        home = main_checkout((start or Path.cwd()).resolve()) / ".biotune"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        what = "is a file" if isinstance(error, FileExistsError) else f"cannot be used ({error})"
        raise OSError(
            f"the home folder {home} {what}: set BIOTUNE_HOME to a folder that can be written"
        ) from error
    return home


def main_checkout(folder: Path) -> Path:
    """The root of the checkout that a folder is in: of the main one, if it is a throw-away copy."""
    root = next((p for p in (folder, *folder.parents) if (p / ".dvc").is_dir()), folder)
    for parent in root.parents:
        if root.is_relative_to(parent / ".dvc" / "tmp" / "exps"):
            return parent
    return root
