"""Which images a person means by the paths they type."""

from __future__ import annotations

import os
from glob import glob, has_magic  # Path.glob takes no absolute patterns
from pathlib import Path
from typing import BinaryIO

from biotune.data.decoding import readable_endings


def find_images(paths: tuple[str, ...], stdin: BinaryIO) -> list[Path | tuple[str, bytes]]:
    """Files as they are, folders and globs with the images that are in them.

    Args:
        paths: files, folders (all below them, by the endings of image files, hidden ones left out),
            globs (``**`` goes through folders), or ``-`` for an image on standard input.
        stdin: read to its end if ``-`` is among them.

    Returns:
        Paths in the order given, sorted within a folder or glob; a pair of ``-`` and what was
        read for standard input. A file that is not there is returned too: that is for the reader
        to find.

    Raises:
        ValueError: naming a folder or glob in which there is no image.
    """
    images: list[Path | tuple[str, bytes]] = []
    for path in paths:
        if path == "-":
            images.append(("-", stdin.read()))
        elif os.path.isdir(path):  # noqa: PTH112 - which never raises, whatever the name
            images += _images_below(Path(path))
        elif has_magic(path) and not os.path.lexists(path):
            matched = [Path(name) for name in sorted(glob(path, recursive=True))]  # noqa: PTH207
            files = [file for file in matched if not file.is_dir()]
            if not files:
                raise ValueError(f"nothing matches {path!r}")
            images += files
        else:
            images.append(Path(path))
    return images


def _images_below(folder: Path) -> list[Path]:
    endings = readable_endings()
    images = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in endings
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not images:
        raise ValueError(f"there is no image in the folder {folder}")
    return images
