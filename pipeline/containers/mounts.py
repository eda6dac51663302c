"""What a stage in a container sees of this machine: everything under the path that it has here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.home import biotune_home, main_checkout

Mounts = Mapping[Path, str]
"""Folder or file → ``rw`` or ``ro``."""

_SQLITE: Final = "sqlite:///"
"""How the address of a database begins that is a file."""

_PARAMS: Final = (("prepare", "path"), ("prepare", "table", "file"), ("model", "weights"))
"""Those that may be paths."""

_CONTAINERS: Final = tuple(
    Path(path)
    for path in (
        *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/venv"),
        *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
        *("/usr/local/bin", "/usr/local/lib", "/proc", "/sys"),
    )
)
"""The container's own: it would not start, or not as it was built, with this machine's there."""

_CONTAINERS_WHOLE: Final = (Path("/dev"), Path("/etc"))
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
        reads: paths that the stage is told to read; what a params file among them names is read
            too, and where links in a folder lead.
        writes: paths that it is told to write.
        variables: of its environment: those that are paths name credentials and caches, and
            ``BIOTUNE_MOUNTS`` whatever else it is to see.
        images: whether it reads the images that its params name.

    Returns:
        Those that others lie in come first.

    Raises:
        ValueError: if something can only be mounted over the container's own files, or
            ``BIOTUNE_MOUNTS`` names what is not there.
    """
    needed = [(folder, "rw") for folder in (main_checkout(Path.cwd()), checkout, biotune_home())]
    needed += [(path, "ro") for path in (*_git_and_dvc(checkout), *_named_by_the_user(variables))]
    needed += [(_existing(path.absolute().parent), "rw") for path in writes]
    beside: set[tuple[Path, str]] = set(_of_variables(variables))
    for path in _read(reads, images):
        if path.exists():  # else the stage itself says so, and what to do
            # A folder of torchvision's is downloaded into.
            needed.append((path, "rw" if path.is_dir() else "ro"))
            beside |= {(place, "ro") for place in _linked(path)}
    # All that is looked up by a link's name, and then by what the link says.
    wanted = {(step, mode) for path, mode in needed for step in _steps(path)}
    # What a link or a variable names by the way does not stand in the place of the container's own.
    wanted |= {(step, mode) for path, mode in beside for step in _steps(path) if not _hides(step)}
    return _outermost(wanted)


def _outermost(wanted: Iterable[tuple[Path, str]]) -> dict[Path, str]:
    """Leave out what is seen by way of a folder that it lies in."""
    mounts: dict[Path, str] = {}
    for path, mode in sorted(wanted, key=lambda mount: (mount[0], mount[1] == "ro")):
        around = next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")
        if around in (mode, "rw"):
            continue
        if _hides(path):
            raise ValueError(
                f"{path} would have to be mounted into the stage's container, which has its own: "
                "move what is in it into a folder, or run with BIOTUNE_RUNTIME=host"
            )
        mounts[path] = mode
    return mounts


def _steps(path: Path) -> Iterator[Path]:
    """A path, and what it becomes by each link on its way: each is looked up by its own name."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay
    yield path
    link = next((part for part in (*reversed(path.parents), path) if part.is_symlink()), None)
    if link is not None:
        yield from _steps(link.parent / link.readlink() / path.relative_to(link))


def _linked(images: Path) -> set[Path]:
    """Where links below a folder lead, and those below there: what is missed is missed in silence.

    An image that is not there is rejected by its name, but a folder's link would just be no folder.
    """
    places, walked, folders = set[Path](), set[Path](), [images]
    while folders:
        folder = folders.pop()
        if folder.resolve() in walked or _hides(folder.resolve()):  # /usr/bin/python3 is no image
            continue
        walked.add(folder.resolve())
        for inside, names, files in os.walk(folder):
            for link in filter(Path.is_symlink, (Path(inside, name) for name in names + files)):
                target = link.parent / link.readlink()
                if link.is_dir():
                    places.add(link)
                    folders.append(link)
                # Of a file the folder, and that once: each of a million would be a mount else.
                elif (target.parent not in places or target.is_symlink()) and link.is_file():
                    places |= {step.parent for step in _steps(link)}
    return places


def _read(reads: Iterable[Path], images: bool) -> Iterator[Path]:
    for path in reads:
        yield path
        if path.suffix == ".safetensors":
            yield path.with_suffix(".json")  # what the weights are of
        if path.suffix in (".yaml", ".yml") and path.is_file():
            yield from _of_params(path, images)


def _of_params(file: Path, images: bool) -> Iterator[Path]:
    """Read without the schema, which needs more than the DVC and Click of a host."""
    try:
        content = YAML(typ="safe", pure=True).load(file)
    except YAMLError:  # the stage itself says what is wrong with it
        return
    for section, *names in _PARAMS:
        value = content
        for name in (section, *names):
            value = value.get(name) if isinstance(value, dict) else None
        if (images or section != "prepare") and isinstance(value, str) and _is_there(value):
            yield Path(value)


def _of_variables(variables: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """What they name, if that is a path: it may mean nothing to a stage."""
    for name, value in variables.items():
        path = Path(value)
        if value.startswith(_SQLITE):  # a database has files beside it
            yield _existing(Path(value.removeprefix(_SQLITE)).absolute().parent), "rw"
        elif not (path.is_absolute() and _is_there(value)) or _hides(path.resolve()):
            continue
        elif path.is_file() or not path.is_relative_to("/usr"):
            yield path, "rw" if path.is_dir() and name.startswith(_CACHES) else "ro"


def _named_by_the_user(variables: Mapping[str, str]) -> Iterator[Path]:
    for named in filter(None, variables.get("BIOTUNE_MOUNTS", "").split(":")):
        if not _is_there(named):
            raise ValueError(f"BIOTUNE_MOUNTS names {named}, which is not there")
        yield Path(named)


def _is_there(text: str) -> bool:
    return os.path.exists(text)  # noqa: PTH110 - False for whatever cannot be a path at all


def _hides(path: Path) -> bool:
    """Whether something of the container's own would be covered by a path of this machine."""
    return any(path.is_relative_to(inside) for inside in _CONTAINERS) or any(
        inside.is_relative_to(path) for inside in (*_CONTAINERS, *_CONTAINERS_WHOLE)
    )


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())


def _git_and_dvc(checkout: Path) -> Iterator[Path]:
    """Where git keeps a second work tree's history, and where DVC's links lead."""
    for command in (
        ["git", "-C", str(checkout), "rev-parse", "--path-format=absolute", "--git-common-dir"],
        [sys.executable, "-m", "dvc", "cache", "dir"],
    ):
        try:
            answer = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        path = Path(answer.stdout.strip() or os.devnull)
        if answer.returncode == 0 and path.is_dir():
            yield path
