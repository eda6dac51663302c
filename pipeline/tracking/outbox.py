"""What is to be sent to MLflow, on disk before it is sent: one SQLite file for all stages.

A record is a row: order, torn writes and who may write are SQLite's business. Files are copied
beside it, not into it: MLflow uploads from a path, and a model would go to the disk three times.

A stage's records belong to the process that holds the lock named like them. The kernel lets go of a
lock with the process that holds it, however that ends, and containers that share a home see it,
which they do not of each other's process ids. What nobody holds is taken up by whoever comes next.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from filelock import FileLock, Timeout

from biotune.files import synchronise

log = logging.getLogger(__name__)

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS records (stage TEXT, number INTEGER, sent TEXT, kind TEXT, "
    "time INTEGER, content BLOB, PRIMARY KEY (stage, number))"
)
"""``sent``: the destination at which a record has arrived."""

_HEADER: Final = b"SQLite format 3\0" + bytes([0x10, 0, 2, 2, 0, 64, 32, 32])
"""The first bytes of our file, some of which SQLite lets pass: pages of 4096, and a log."""


@dataclass(frozen=True)
class Record:
    """One thing to be sent to MLflow.

    Attributes:
        number: names it among its stage's for ever, from 0, which is the stage's start.
        kind: what it is; ``damaged`` if the content is no JSON any more.
        time: when it happened, in milliseconds since 1970.
        content: JSON values.
    """

    number: int
    kind: str
    time: int
    content: Mapping[str, Any]


class Outbox:
    """The records of all stages of a home; close it at the end.

    A file that is damaged is kept aside, and said, when it is opened. If that shows only later, it
    is said, and nothing more is kept, so that no stage ends because of it.

    Args:
        home: see :func:`pipeline.home.biotune_home`.

    Raises:
        OSError: here and in every method, if the home cannot be read or written.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "outbox"
        self._file = self.folder / "records.sqlite"
        self._damaged = False
        self._one_at_a_time = threading.Lock()
        # SQLite itself does not wait for another process that is changing the mode of the file.
        with _explained(self._file), FileLock(home / "outbox.lock"):
            if self._file.is_file() and self._file.stat().st_size and not _is_sound(self._file):
                _keep_aside(self.folder)
            self.folder.mkdir(exist_ok=True)
            self._database = _connect(self._file)
            self._database.execute(_TABLE)

    def begin(self, stage: str, content: Mapping[str, Any]) -> StageRecords:
        """The records of a stage that is starting, with their first one, its ``start``."""
        records = StageRecords(self, f"{time.time_ns():020d}-{stage}-{uuid.uuid4().hex[:8]}")
        records.hold()  # before anybody can read of it
        records.append("start", content)
        synchronise(self.folder)
        return records

    def left_behind(self) -> Iterator[StageRecords]:
        """What no living process holds, the oldest first; each is held until the next is asked for.

        What was killed ends with a record that says so.
        """
        names = self.execute("SELECT DISTINCT stage FROM records ORDER BY stage")
        for (name,) in names:
            records = StageRecords(self, name, taken=True)
            try:
                if records.hold() and records.make_whole():
                    yield records
            finally:
                records.close()

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do one thing, on disk when this returns; no rows once the file is found damaged."""
        try:
            with self._one_at_a_time, _explained(self._file):
                return self._database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a fault of ours
                raise
            if not self._damaged:
                log.warning("%s is damaged (%s): nothing more is tracked", self._file, error)
            self._damaged = True
            return []

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class StageRecords:
    """The records of one stage's run, in their order, while this process holds them.

    One thread adds some, another sends them.

    Args:
        outbox: that they are in.
        name: tells them from any other stage's, on any machine.
        taken: whether another process has begun them, and may have sent any.

    Attributes:
        position: number of the last record that was sent or put off; -1 at first.
    """

    def __init__(self, outbox: Outbox, name: str, *, taken: bool = False) -> None:
        self.name, self.taken = name, taken
        self.folder = outbox.folder / name
        self.position = -1
        self._outbox = outbox
        # The thread that sends lets go of what the main thread has made.
        self._lock = FileLock(outbox.folder / f"{name}.lock", thread_local=False)

    @property
    def destination(self) -> str | None:
        """Where its stage was to send them; None if that cannot be read."""
        for content in self._select("content", "number = 0"):
            destination: str | None = _parsed(*content).get("destination")
            return destination
        return None

    def append(self, kind: str, content: Mapping[str, Any], time_ms: int | None = None) -> None:
        """Add a record; it is on disk when this returns.

        Args:
            kind: what it is.
            content: JSON values.
            time_ms: when it happened, in milliseconds since 1970; default now.
        """
        happened = round(1000 * time.time()) if time_ms is None else time_ms
        self._outbox.execute(
            "INSERT INTO records SELECT ?, coalesce(max(number) + 1, 0), NULL, ?, ?, ? "
            "FROM records WHERE stage = ?",
            *(self.name, kind, happened, json.dumps(content).encode(), self.name),
        )

    def keep_file(self, file: Path) -> str:
        """Copy a file, which may be changed before it is sent; the copy's place in the folder."""
        try:
            self.folder.mkdir(exist_ok=True)
            copy = Path(mkdtemp(dir=self.folder), file.name)
            shutil.copyfile(file, copy)
            for written in (copy, copy.parent, self.folder, self._outbox.folder):
                synchronise(written)
        except OSError as error:
            raise _cannot_keep(error.errno, error.strerror, self.folder) from error
        return copy.relative_to(self.folder).as_posix()

    def next_unsent(self, destination: str) -> Record | None:
        """The first after :attr:`position` that has not arrived there; None while there is no more.

        The start always is among them, because it says where the others go.
        """
        condition = "number > ? AND (number = 0 OR sent IS NOT ?) ORDER BY number LIMIT 1"
        fields = "number, kind, time, content"
        for number, kind, happened, content in self._select(
            fields, condition, self.position, destination
        ):
            known = _parsed(content)
            return Record(number, "damaged" if "damaged" in known else kind, happened, known)
        return None

    def note_sent(self, record: Record, destination: str) -> None:
        """Note that one record has arrived there."""
        self._outbox.execute(
            "UPDATE records SET sent = ? WHERE stage = ? AND number = ?",
            *(destination, self.name, record.number),
        )

    def left(self, destination: str) -> int:
        """How many records have not arrived there."""
        return len(self._select("number", "sent IS NOT ?", destination))

    def set_aside(self, record: Record, reason: str) -> None:
        """Keep what can never be sent where a person can look at it, and say so."""
        aside = self._outbox.home / "refused.jsonl"
        refused = {"stage": self.name, "reason": reason, **asdict(record)}
        with aside.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(refused) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        what = f"record {record.number} ({record.kind}) of {self.name}"
        log.warning("%s cannot go to MLflow (%s): it is in %s", what, reason, aside)

    def hold(self) -> bool:
        """Hold them until :meth:`close`; False if a living process does."""
        with suppress(Timeout):
            self._lock.acquire(timeout=0)
        return self._lock.is_locked

    def make_whole(self) -> bool:
        """End them if their process was killed before it could; False if they are gone by now."""
        last = self._last()
        if last is None:
            self._forget()
        elif last[0] != "end":
            self.append("end", {"status": "KILLED"}, time_ms=last[1])
        return last is not None

    def let_go(self, destination: str) -> None:
        """Forget them if all have arrived there, or else leave them to whoever comes next."""
        with suppress(OSError):  # of a full disk: whoever comes next forgets them
            last = self._last()
            if last is not None and last[0] == "end" and not self.left(destination):
                self._forget()
        self.close()

    def close(self) -> None:
        """Leave them to whoever comes next."""
        self._lock.release()

    def _forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # first: else nobody would know of them
        self._outbox.execute("DELETE FROM records WHERE stage = ?", self.name)
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _last(self) -> tuple[str, int] | None:
        """Kind and time."""
        for kind, happened in self._select("kind, time", "true ORDER BY number DESC LIMIT 1"):
            return kind, happened
        return None

    def _select(self, fields: str, condition: str, *values: object) -> list[tuple[Any, ...]]:
        return self._outbox.execute(
            f"SELECT {fields} FROM records WHERE stage = ? AND {condition}",  # noqa: S608
            *(self.name, *values),
        )


def _connect(file: Path) -> sqlite3.Connection:
    """Each statement commits by itself."""
    database = sqlite3.connect(file, isolation_level=None, timeout=60, check_same_thread=False)
    database.text_factory = lambda text: text.decode(errors="replace")  # what is damaged may be any
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    # After each record: behind a damaged place in the log nothing can be read any more.
    database.execute("PRAGMA wal_autocheckpoint = 1")
    return database


def _is_sound(file: Path) -> bool:
    """Whether SQLite finds nothing wrong, nor do we where it does not look."""
    try:
        with closing(_connect(file)) as database:
            database.execute("SELECT stage, number, sent, kind, time, content FROM records")
            found = database.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_ERROR":  # that is a header that makes no sense
            raise  # no permission, no space, or another process that does not let go
        return False
    except sqlite3.DatabaseError:
        return False
    with file.open("rb") as stream:
        return found == [("ok",)] and stream.read(len(_HEADER)) == _HEADER


def _keep_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    folder.rename(aside)
    log.warning(
        "what had not been sent to MLflow was damaged on the disk: it is kept in %s, and is not "
        "sent. What stages have written to artifacts/ is not affected",
        aside,
    )


def _parsed(content: object) -> dict[str, Any]:
    """A record's content; what is no JSON as ``damaged``."""
    with suppress(ValueError, TypeError):
        known = json.loads(content)  # type: ignore[arg-type]
        if isinstance(known, dict):
            return known
    return {"damaged": repr(content)}


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """What SQLite says of the disk, with the file and what to do about it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorname == "SQLITE_FULL"
        raise _cannot_keep(errno.ENOSPC if full else errno.EIO, str(error), file) from error


def _cannot_keep(number: int | None, reason: str | None, file: Path) -> OSError:
    return OSError(
        number,
        f"what is tracked cannot be kept ({reason}): make sure that the folder can be written and "
        "has free space, and run again",
        str(file),
    )
