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

_OWN: Final = tuple(
    Path(path)
    for path in (
        *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/venv"),
        *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
        *("/usr/local/bin", "/usr/local/lib", "/proc", "/sys"),
    )
)
"""The container's own: it would not start, or not as it was built, with this machine's there."""

_WHOLE: Final = (Path("/dev"), Path("/etc"))
"""These as well, but not what is in them: /dev/shm/images is as good as any."""

_CACHES: Final = ("TORCH_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "MLFLOW_")
"""How the names of the variables begin whose folders a stage writes in."""


def stage_mounts(
    checkout: Path,
    reads: Iterable[Path],
    writes: Iterable[Path],
    variables: Mapping[str, str],
    images: bool = True,
) -> dict[Path, str]:
    """All that a stage needs: the checkout, the home folder, and what lies elsewhere.

    Args:
        checkout: where the code is.
        reads: paths that the stage is told to read; what a YAML file among them names is read too.
        writes: paths that it is told to write.
        variables: of its environment: those that are paths name credentials and caches.
        images: whether it reads the images that its params name.

    Returns:
        Those that others lie in come first.

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
    for path in _read(reads, images):
        if path.exists():  # else the stage itself says so, and what to do
            # A folder of torchvision's is downloaded into.
            _add(mounts, path, "rw" if path.is_dir() else "ro")
            _follow_links(mounts, path.resolve())
    for name, value in variables.items():
        _add_variable(mounts, name, value)
    return dict(sorted(mounts.items()))


def _add_variable(mounts: dict[Path, str], name: str, value: str) -> None:
    """Mount what a variable names, if that is a path: it may mean nothing to a stage."""
    if value.startswith(SQLITE):  # a database has files beside it
        _add(mounts, _existing(Path(value.removeprefix(SQLITE)).absolute().parent), "rw")
        return
    path = Path(value)
    if not (path.is_absolute() and _is_there(value)) or _hides(path) or _hides(path.resolve()):
        return
    if path.is_dir() and name.startswith(_CACHES):
        _add(mounts, path, "rw")
    elif path.is_file() or (path.is_dir() and not path.is_relative_to("/usr")):
        _add(mounts, path, "ro")


def _add(mounts: dict[Path, str], path: Path, mode: str) -> None:
    """Mount a path, and all that it leads over by links: each is looked up by its own name."""
    for step in _steps(Path(os.path.abspath(path))):  # noqa: PTH100 - links stay
        _add_one(mounts, step, mode)


def _add_one(mounts: dict[Path, str], path: Path, mode: str) -> None:
    """Mount a path, unless it is inside of one that is; those inside of it are its own then."""
    around = [one for one in mounts if path.is_relative_to(one)]
    if around and mounts[max(around, key=_depth)] in (mode, "rw"):
        return
    if _hides(path):
        raise ValueError(
            f"{path} would have to be mounted into the stage's container, which has its own: move "
            "what is in it into a folder, or run with BIOTUNE_RUNTIME=host"
        )
    for inside in [one for one in mounts if one.is_relative_to(path) and mounts[one] == mode]:
        del mounts[inside]
    mounts[path] = mode


def _steps(path: Path) -> Iterator[Path]:
    """A path, and what it becomes by each link on its way."""
    yield path
    for part in (*reversed(path.parents), path):
        if part.is_symlink():
            yield from _steps(_target(part) / path.relative_to(part))
            return


def _target(link: Path) -> Path:
    """What a link says, in full. It may be a link itself."""
    return Path(os.path.abspath(link.parent / link.readlink()))  # noqa: PTH100


def _follow_links(mounts: dict[Path, str], folder: Path) -> None:
    """Mount where the links below a folder lead, and those below there."""
    folders, walked, seen = [folder], {folder}, set[Path]()
    while folders:
        for link in _links(folders.pop()):
            target, where = _target(link), link.resolve()
            a_folder = where.is_dir()
            if not a_folder and target.parent in seen and not target.is_symlink():
                continue  # as most of a million links into DVC's cache
            for step in _steps(target):
                # Of a file the folder: each of a million would be a mount else.
                place = step if a_folder else step.parent
                if place not in seen and not _hides(place):  # /usr/bin/python3 is no image
                    seen.add(place)
                    _add_one(mounts, place, "ro")
            if a_folder and where not in walked:
                walked.add(where)
                folders.append(where)


def _links(folder: Path) -> Iterator[Path]:
    for inside, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = Path(inside, name)
            if entry.is_symlink() and entry.exists():
                yield entry


def _read(reads: Iterable[Path], images: bool) -> Iterator[Path]:
    for path in reads:
        yield path
        if path.suffix == ".safetensors":
            yield path.with_suffix(".json")  # what the weights are of
        if path.suffix in (".yaml", ".yml") and path.is_file():
            try:
                content = YAML(typ="safe", pure=True).load(path)
            except YAMLError:  # the stage itself says what is wrong with it
                continue
            if isinstance(content, dict) and not images:
                content.pop("prepare", None)
            yield from (Path(text) for text in _strings(content) if _is_there(text))


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for one in content.values() if isinstance(content, dict) else ():
        yield from _strings(one)


def _is_there(text: str) -> bool:
    return os.path.exists(text)  # noqa: PTH110 - False for whatever cannot be a path at all


def _hides(path: Path) -> bool:
    """Whether something of the container's own would be covered by a path of this machine."""
    return (
        path in _WHOLE
        or any(path.is_relative_to(own) for own in _OWN)
        or any(own.is_relative_to(path) for own in (*_OWN, *_WHOLE))
    )


def _depth(path: Path) -> int:
    return len(path.parts)


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
