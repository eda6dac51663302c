"""A copy of a working tree, to run or to break."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def copy_tree(tree: Path, folder: Path) -> None:
    """Copy a working tree as it is, but for what git ignores, into an empty repository.

    Args:
        tree: the root of a checkout.
        folder: empty, or not there.

    Raises:
        subprocess.CalledProcessError: if ``tree`` is no checkout.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (tree / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
