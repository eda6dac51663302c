"""The evaluation store's SQLite file: opened, found damaged, and mended from what can be read."""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from biotune.files import put_file, scratch_beside, synchronise
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

FORMAT: Final = 1
"""Of the tables, kept as the file's ``user_version``."""

_TABLES: Final = {
    "curves": ("key TEXT PRIMARY KEY", "task TEXT", "curve BLOB", "checksum TEXT"),
    "attempts": ("time TEXT", "task TEXT", "reason TEXT"),
}

_MOST_FORMATS: Final = 1000
"""There will never be as many: such a number is damage."""

_HEADER: Final = b"SQLite format 3\0" + bytes([0x10, 0, 2, 2, 0, 64, 32, 32])
"""The first bytes of each of our files: pages of 4096 bytes, and a write-ahead log."""

_MOST_ROWS: Final = 1_000_000
"""Looked at in a damaged file, which may claim to have any number."""


def open_store(path: Path) -> sqlite3.Connection:
    """Open the file, made or mended as it needs; each statement commits by itself.

    Call it while nobody else opens the file.

    Raises:
        PipelineError: if a newer BioTune has written it.
        sqlite3.Error: whatever else SQLite says.
    """
    if path.is_file() and path.stat().st_size and not _is_sound(path):
        _mend(path)
    database = _connect(path)
    _make_tables(database, path)
    return database


def checksum(key: str, curve: bytes) -> bytes:
    """Of an entry and its place, so that one entry cannot pass for another."""
    return hashlib.sha256(key.encode() + curve).hexdigest().encode()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    database.text_factory = lambda text: text.decode(errors="replace")  # what is damaged may be any
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    # After each entry: behind a damaged place in the log nothing can be read any more.
    database.execute("PRAGMA wal_autocheckpoint = 1")
    return database


def _make_tables(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise PipelineError(
            f"{path} was written by a newer BioTune (format {version}, this one knows {FORMAT}): "
            "use that one, or another BIOTUNE_HOME"
        )
    for table, columns in _TABLES.items():
        database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(columns)})")
    if version < FORMAT:  # a new file's is 0
        database.execute(f"PRAGMA user_version = {FORMAT}")


def _is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong; a few microseconds for each entry."""
    try:
        with closing(_connect(path)) as database:
            ((version,),) = database.execute("PRAGMA user_version")
            report = database.execute("PRAGMA integrity_check").fetchall()
        with path.open("rb") as stream:
            header = stream.read(len(_HEADER))  # SQLite itself lets some of it pass
        return report == [("ok",)] and header == _HEADER and 0 <= version < _MOST_FORMATS
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_ERROR":  # that is a header that makes no sense
            raise  # no permission, no space, or another process that does not let go
        return False
    except sqlite3.DatabaseError:
        return False


def _mend(path: Path) -> None:
    """Replace the file by one of all entries that are whole; it is kept beside it."""
    aside = _free_name(path)
    shutil.copyfile(path, aside)
    synchronise(aside)
    with scratch_beside(path) as scratch:
        damaged = scratch / "damaged"
        for log_file in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{log_file}", f"{damaged}{log_file}")
        with damaged.open("r+b") as stream:
            stream.write(_HEADER)
        fresh = scratch / path.name
        with closing(_connect(fresh)) as made:
            _make_tables(made, fresh)
            made.execute("BEGIN IMMEDIATE")
            kept = sum(_copy(damaged, made, table) for table in _TABLES)
            made.execute("COMMIT")
        for log_file in ("-wal", "-shm"):  # not the new file's
            path.with_name(f"{path.name}{log_file}").unlink(missing_ok=True)
        put_file(fresh, path)
    log.warning(
        "%s was damaged and is mended: %d entries could be kept, others are trained again. The "
        "damaged file is %s",
        path,
        kept,
        aside,
    )


def _copy(path: Path, made: sqlite3.Connection, table: str) -> int:
    """Copy what is whole; how many curves."""
    names = [column.partition(" ")[0] for column in _TABLES[table]]
    insert = (
        f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) "  # noqa: S608
        f"VALUES ({', '.join('?' * len(names))})"
    )
    copied = 0
    for row in _readable(path, table, names):
        values: list[object] = [(value or b"").decode(errors="replace") for value in row]
        if table == "curves":
            key, _, curve, digest = row
            if curve is None or digest != checksum((key or b"").decode(errors="replace"), curve):
                continue
            values[names.index("curve")] = curve
            copied += 1
        made.execute(insert, values)
    return copied


def _readable(path: Path, table: str, names: list[str]) -> Iterator[tuple[bytes | None, ...]]:
    """Each row that SQLite can read, whatever it says of others."""
    fields = ", ".join(f"CAST({name} AS BLOB)" for name in names)
    select = f"SELECT {fields} FROM {table} WHERE rowid = ?"  # noqa: S608
    with suppress(sqlite3.DatabaseError), closing(_connect(path)) as database:
        last = _MOST_ROWS
        with suppress(sqlite3.DatabaseError):
            (highest,) = database.execute(f"SELECT max(rowid) FROM {table}").fetchone()  # noqa: S608
            last = min(highest or 0, _MOST_ROWS)
        for rowid in range(1, last + 1):
            with suppress(sqlite3.DatabaseError):
                yield from database.execute(select, (rowid,)).fetchall()


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
        number += 1
    return aside
