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
    "CREATE TABLE IF NOT EXISTS records (stage TEXT, number INTEGER, destination TEXT, sent TEXT, "
    "kind TEXT, time INTEGER, content BLOB, PRIMARY KEY (stage, number))"
)
"""``destination``: where the stage was to send a record; ``sent``: where it has arrived."""

_END_KILLED: Final = """
    INSERT INTO records SELECT stage, number + 1, destination, NULL, 'end', time, ? FROM
    (SELECT * FROM records WHERE stage = ? ORDER BY number DESC LIMIT 1) WHERE kind != 'end'
"""

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

    def begin(self, stage: str, destination: str, content: Mapping[str, Any]) -> StageRecords:
        """The records of a stage that is starting, with their first one, its ``start``.

        Args:
            stage: its name.
            destination: where it is to send them, as it is to be written down.
            content: of the first one.
        """
        name = f"{time.time_ns():020d}-{stage}-{uuid.uuid4().hex[:8]}"
        records = StageRecords(self, name, destination)
        records.lock.acquire()  # before anybody can read of it
        records.append("start", content)
        synchronise(self.folder)
        return records

    def left_behind(self) -> Iterator[StageRecords]:
        """What no living process holds, the oldest first; each is held until the next is asked for.

        What was killed ends with a record that says so.
        """
        names = "SELECT DISTINCT stage, destination FROM records ORDER BY stage"
        for name, destination in self.execute(names):
            records = StageRecords(self, name, destination, taken=True)
            with suppress(Timeout), records.lock:
                self.execute(_END_KILLED, b'{"status": "KILLED"}', name)
                if records.select("1", "true LIMIT 1"):  # else they have arrived meanwhile
                    yield records

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do one thing, on disk when this returns; no rows once the file is found damaged."""
        try:
            with self._one_at_a_time, _explained(self._file):
                return self._database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a fault of ours
                raise
            if not self._damaged:
                what = "nothing more of this stage is tracked, and the next one begins a new file"
                log.warning("%s is damaged (%s): %s", self._file, error, what)
            self._damaged = True
            return []

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class StageRecords:
    """The records of one stage's run, in their order, while this process holds their lock.

    One thread adds some, another sends them.

    Args:
        outbox: that they are in.
        name: tells them from any other stage's, on any machine.
        destination: where their stage was to send them.
        taken: whether another process has begun them, and may have sent any.

    Attributes:
        folder: of copies of files.
        position: number of the last record that was sent or put off; -1 at first.
        lock: held by one process at a time.
    """

    def __init__(self, outbox: Outbox, name: str, destination: str, *, taken: bool = False) -> None:
        self.name, self.destination, self.taken = name, destination, taken
        self.folder = outbox.folder / name
        self.position = -1
        # The thread that sends lets go of what the main thread has made.
        self.lock = FileLock(outbox.folder / f"{name}.lock", timeout=0, thread_local=False)
        self._outbox = outbox

    def append(self, kind: str, content: Mapping[str, Any]) -> None:
        """Add a record of JSON values; it is on disk when this returns."""
        self._outbox.execute(
            "INSERT INTO records SELECT ?, coalesce(max(number) + 1, 0), ?, NULL, ?, ?, ? "
            "FROM records WHERE stage = ?",
            *(self.name, self.destination, kind, round(1000 * time.time())),
            *(json.dumps(content).encode(), self.name),
        )

    def keep_file(self, file: Path) -> str:
        """Copy a file, which may be changed before it is sent; the copy's place in the folder."""
        with _explained(self.folder):
            self.folder.mkdir(exist_ok=True)
            copy = Path(mkdtemp(dir=self.folder), file.name)
            shutil.copyfile(file, copy)
            for written in (copy, copy.parent, self.folder, self._outbox.folder):
                synchronise(written)
        return copy.relative_to(self.folder).as_posix()

    def next_unsent(self, destination: str) -> Record | None:
        """The first after :attr:`position` that has not arrived there; None while there is no more.

        The start always is among them, because it says where the others go.
        """
        rows = self.select(
            "number, kind, time, content",
            "number > ? AND (number = 0 OR sent IS NOT ?) ORDER BY number LIMIT 1",
            *(self.position, destination),
        )
        for number, kind, happened, content in rows:
            with suppress(ValueError, TypeError):
                return Record(number, kind, happened, json.loads(content))
            return Record(number, "damaged", happened, {"damaged": repr(content)})
        return None

    def note_sent(self, record: Record, destination: str) -> None:
        """Note that one record has arrived there."""
        self._outbox.execute(
            "UPDATE records SET sent = ? WHERE stage = ? AND number = ?",
            *(destination, self.name, record.number),
        )

    def left(self, destination: str) -> int:
        """How many records have not arrived there."""
        return len(self.select("number", "sent IS NOT ?", destination))

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

    def let_go(self, destination: str) -> None:
        """Forget them if all have arrived there, or else leave them to whoever comes next."""
        with suppress(OSError):  # of a full disk: whoever comes next forgets them
            if self.select("1", "kind = 'end'") and not self.left(destination):
                shutil.rmtree(self.folder, ignore_errors=True)  # first: else nobody knows of them
                self._outbox.execute("DELETE FROM records WHERE stage = ?", self.name)
                Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()

    def select(self, fields: str, condition: str, *values: object) -> list[tuple[Any, ...]]:
        """Fields of those that meet an SQL condition."""
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
            database.execute("SELECT destination, sent, kind, time, content FROM records LIMIT 1")
            found = database.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname.split("_")[1] not in {"ERROR", "CORRUPT", "NOTADB"}:
            raise  # no permission, no space, or another process that does not let go
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


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """What SQLite or the system say of the disk, with the file and what to do about it."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        raise OSError(
            errno.ENOSPC if full else getattr(error, "errno", errno.EIO),
            f"what is tracked cannot be kept ({getattr(error, 'strerror', error)}): make sure that "
            "the folder can be written and has free space, and run again",
            str(file),
        ) from error
