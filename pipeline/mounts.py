"""What a stage in a container sees of this machine: everything under the path that it has here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.home import biotune_home, main_checkout

Mounts = Mapping[Path, str]
"""Folder or file → ``rw`` or ``ro``."""

SQLITE: Final = "sqlite:///"
"""How the address of a database begins that is a file."""

_NEVER: Final = frozenset(
    Path(path) for path in ("/", "/bin", "/dev", "/etc", "/lib", "/opt", "/proc", "/sys", "/usr")
)
"""The container's own: it would not start with this machine's in their place."""


def stage_mounts(
    checkout: Path, reads: Iterable[Path], writes: Iterable[Path], values: Iterable[str]
) -> dict[Path, str]:
    """All that a stage needs: the checkout, the home folder, and what lies elsewhere.

    Args:
        checkout: where the code is.
        reads: paths that the stage is told to read; what a YAML file among them names is read too.
        writes: paths that it is told to write.
        values: of its environment variables: those that are paths name credentials and caches.

    Raises:
        ValueError: if something can only be mounted over the container's own files.
    """
    mounts: dict[Path, str] = {}
    for folder in (main_checkout(Path.cwd()), checkout, biotune_home()):
        _add(mounts, folder, "rw")
    for path in (_git_folder(checkout), _dvc_cache()):
        if path is not None and path.is_dir():
            _add(mounts, path, "ro")
    for path in writes:
        _add(mounts, _existing(path.absolute().parent), "rw")
    for path in _read(reads):
        _add_with_links(mounts, path)
    for value in values:
        if value.startswith(SQLITE):  # a database has files beside it
            _add(mounts, _existing(Path(value.removeprefix(SQLITE)).absolute().parent), "rw")
        elif Path(value).is_absolute() and _is_there(value) and Path(value) not in _NEVER:
            _add(mounts, Path(value), "rw")
    return mounts


def _add(mounts: dict[Path, str], path: Path, mode: str) -> None:
    """Mount a path, unless it is inside of one that is; those inside of it are its own then."""
    if any(path.is_relative_to(one) for one in mounts):
        return
    if path in _NEVER:
        raise ValueError(
            f"{path} would have to be mounted into the stage's container, which has its own: move "
            "what is in it into a folder, or run with BIOTUNE_RUNTIME=host"
        )
    for inside in [one for one in mounts if one.is_relative_to(path) and mounts[one] == mode]:
        del mounts[inside]
    mounts[path] = mode


def _add_with_links(mounts: dict[Path, str], path: Path) -> None:
    """Mount a path that is read, and where the links below it lead."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - links stay: they are what is looked up
    if not absolute.exists():  # the stage itself says so, and what to do
        return
    _add(mounts, absolute, "rw")
    _add(mounts, absolute.resolve(), "rw")
    for folder, folders, files in os.walk(absolute.resolve()):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if entry.is_symlink() and entry.exists():
                target = entry.resolve()
                _add(mounts, target if target.is_dir() else target.parent, "rw")


def _read(reads: Iterable[Path]) -> Iterator[Path]:
    for path in reads:
        yield path
        if path.suffix in (".yaml", ".yml") and path.is_file():
            try:
                content = YAML(typ="safe", pure=True).load(path)
            except YAMLError:  # the stage itself says what is wrong with it
                continue
            yield from (Path(text) for text in _strings(content) if _is_there(text))


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for one in content.values() if isinstance(content, dict) else ():
        yield from _strings(one)


def _is_there(text: str) -> bool:
    return os.path.exists(text)  # noqa: PTH110 - False for whatever cannot be a path at all


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _git_folder(checkout: Path) -> Path | None:
    """Where git keeps a work tree's history: elsewhere, if it is not the first work tree."""
    return _said(
        ["git", "-C", str(checkout), "rev-parse", "--path-format=absolute", "--git-common-dir"]
    )


def _dvc_cache() -> Path | None:
    """Where DVC's links lead, if its cache is a shared one."""
    return _said([sys.executable, "-m", "dvc", "cache", "dir"])


def _said(command: list[str]) -> Path | None:
    try:
        asked = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return Path(asked.stdout.strip()) if asked.returncode == 0 and asked.stdout.strip() else None
