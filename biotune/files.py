"""Files and folders that appear whole or not at all: written beside, synchronised, renamed.

And what there is below a folder.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_LOCK: Final = ".lock"

_OWN: Final[set[str]] = set()
"""Names of the scratch folders of this process: its locks would not stop itself."""


@contextmanager
def scratch_beside(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """An empty folder beside ``path``, for what is to take its place; removed at the end.

    Those that killed processes have left of the same path are removed now. Whether a process lives
    is told by a lock that it holds, not by its id, which is the same small number in every
    container.

    Args:
        path: its parents are made.
        alone: whether nobody else may be writing the same.

    Raises:
        BlockingIOError: if another process is, and must not.
        OSError: if the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _new_scratch(path)
    try:
        if _remove_leftovers(path, folder) and alone:
            raise BlockingIOError(
                f"another process is writing {path} at this moment: wait until it has ended, or "
                "name another place"
            )
        yield folder
    finally:
        _remove(folder)
        os.close(lock)
        _OWN.discard(folder.name)


def put_file(fresh: Path, path: Path) -> None:
    """Give a finished file its name, on disk with its content when this returns."""
    synchronise(fresh)
    fresh.replace(path)
    synchronise(path.parent)


def put_folder(fresh: Path, path: Path, old: Path) -> None:
    """Give a finished folder its name, on disk with all that is in it when this returns.

    Args:
        fresh: the folder.
        path: what is there goes to ``old``, and comes back if this fails.
        old: a name that is free.
    """
    for inside in fresh.rglob("*"):
        synchronise(inside)
    synchronise(fresh)
    try:
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:  # Ctrl-C too
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    synchronise(path.parent)


def visible_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder but hidden ones; links are followed, but not in a circle."""
    real = folder.resolve()
    if real in above:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        # A link to itself cannot even be asked by the entry.
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112
            yield from visible_files(Path(entry.path), (*above, real))
        else:
            yield Path(entry.path)


def synchronise(path: Path) -> None:
    """Have a file's content, or a folder's names, on disk when this returns.

    Or a power cut could leave a new name with nothing behind it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}):
            raise  # some file systems synchronise no folders
    finally:
        os.close(descriptor)


def _new_scratch(path: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor of the lock in it."""
    while True:
        folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        _OWN.add(folder.name)
        try:
            folder.mkdir()
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _hold(lock) is not False and os.fstat(lock).st_nlink:
                return folder, lock
            os.close(lock)  # another has just taken it for a leftover
        except FileNotFoundError:  # the same
            pass
        except BaseException:
            _remove(folder)
            raise
        _OWN.discard(folder.name)


def _remove_leftovers(path: Path, scratch: Path) -> bool:
    """Remove what dead processes have left; whether a living process is writing the same."""
    living = False
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 32}.partial"):
        if left.name != scratch.name:
            living = left.name in _OWN or _is_alive(left) or living
    return living


def _is_alive(left: Path) -> bool:
    """Whether a folder's process lives; if not, it is removed, unless that cannot be known."""
    try:
        lock = os.open(left / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # just being made, or all but removed
        with suppress(OSError):
            left.rmdir()
        return False
    except OSError:  # another user's
        return False
    try:
        held = _hold(lock)
        if held:
            _remove(left)  # while it is held, so that nobody else takes it
    finally:
        os.close(lock)
    return held is False


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: a folder without one is empty."""
    with suppress(OSError):
        for inside in folder.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside, ignore_errors=True)
            elif inside.name != _LOCK:
                inside.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _hold(lock: int) -> bool | None:
    """Lock a file until it is closed; False if another process does, None without locks there.

    A POSIX lock: unlike others it is not inherited by processes that are forked, and so ends with
    the one that took it.
    """
    import fcntl  # not on Windows, where an exported model may still be used

    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in {errno.EACCES, errno.EAGAIN} else None
    return True
