"""What is to be sent to MLflow, on disk before it is sent: a folder for each stage's run.

A folder in ``spool/`` of the home belongs to the process that holds its lock. What a process has
left behind, sent or not, is taken up by the next one: no record is lost, whatever was killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

_CHECKSUM_DIGITS: Final = 16


@dataclass(frozen=True)
class Record:
    """One thing to be sent.

    Attributes:
        number: its place in the spool, from 0.
        kind: what it is; ``damaged`` if its line is not what was written.
        time: when it happened, in milliseconds since 1970.
        content: JSON values.
    """

    number: int
    kind: str
    time: int
    content: Mapping[str, Any]


class Spool:
    """The records of one stage's run, in their order; made by :func:`new_spool`.

    One thread appends, another reads and notes what is sent; what is read is not kept in memory.

    Args:
        folder: with ``records.jsonl``, ``sent.json`` and the copies of files.
        lock: held by this process.
        inherited: whether another process has written it.
    """

    def __init__(self, folder: Path, lock: FileLock, *, inherited: bool) -> None:
        self.folder, self.inherited = folder, inherited
        self._lock = lock
        self._file = folder / "records.jsonl"
        self._offset = 0  # of the next line that is read
        self._read = 0  # how many lines were
        self.written = self._close_torn() if inherited else 0

    @property
    def name(self) -> str:
        """Tells it from any other, on any machine."""
        return self.folder.name

    def append(self, kind: str, content: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            OSError: naming the file, if it cannot be written; the spool stays as it was.
        """
        text = json.dumps({"kind": kind, "time": _now(), "content": content})
        line = f"{_checksum(text)} {text}\n".encode()
        size = self._file.stat().st_size if self._file.exists() else 0
        try:
            with self._file.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if self._file.exists():
                os.truncate(self._file, size)
            raise _cannot_keep(error, self._file) from error
        self.written += 1

    def keep_file(self, file: Path) -> str:
        """Copy a file, which may be changed before it is sent; the copy's place in the spool.

        Raises:
            OSError: if either cannot be read or written.
        """
        place = f"files/{self.written}/{file.name}"
        try:
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self.folder / place)
        except OSError as error:
            raise _cannot_keep(error, self.folder / place) from error
        return place

    def next_record(self) -> Record | None:
        """The record after the last that this gave; None while there is no more."""
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._offset)
                line = stream.readline()
        except FileNotFoundError:
            return None
        if not line.endswith(b"\n"):
            return None  # it is just being written
        self._offset += len(line)
        self._read += 1
        return _parse(self._read - 1, line)

    def rewind(self) -> None:
        """Begin again with the first record."""
        self._offset = self._read = 0

    def sent(self, destination: str) -> int:
        """How many records have arrived there; those sent elsewhere do not count."""
        try:
            noted = json.loads((self.folder / "sent.json").read_text(encoding="utf-8"))
            sent = int(noted["sent"]) if noted["destination"] == destination else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # they are sent again, which changes nothing there
        return sent if 0 <= sent <= self.written else 0

    def note_sent(self, count: int, destination: str) -> None:
        """Note that the first ``count`` records have arrived."""
        beside = self.folder / "sent.partial"
        beside.write_text(json.dumps({"sent": count, "destination": destination}))
        beside.replace(self.folder / "sent.json")

    def set_aside(self, record: Record, reason: str) -> None:
        """Keep what can never be sent where a person can look at it, and say so."""
        aside = self._aside()
        line = self._file.read_bytes().splitlines(keepends=True)[record.number]
        with (aside / f"{self.name}.jsonl").open("ab") as stream:
            stream.write(line)
        log.warning(
            "a record of %s cannot go to MLflow (%s): it is in %s", self.name, reason, aside
        )

    def set_all_aside(self) -> None:
        """Keep the whole spool there, as it does not say which run it is of."""
        with _only_one(self.folder.parents[1]):
            kept = self.folder.rename(self._aside() / self.name)
            self._lock.release()
        log.warning("the first record of %s is damaged: it cannot go to MLflow", kept)

    def _aside(self) -> Path:
        aside = self.folder.parents[1] / "spool-damaged"
        aside.mkdir(exist_ok=True)
        return aside

    def close(self) -> None:
        """Leave it to whoever comes next."""
        self._lock.release()

    def remove(self) -> None:
        """Everything has arrived."""
        with _only_one(self.folder.parents[1]):
            gone = self.folder.with_name(f".{self.name}")
            self.folder.rename(gone)
            self._lock.release()
        shutil.rmtree(gone, ignore_errors=True)

    def _close_torn(self) -> int:
        """Cut off a last line that its process did not finish; how many there are."""
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(self._file, whole)
        return content.count(b"\n")


def new_spool(home: Path, stage: str) -> Spool:
    """A spool for a stage that is starting.

    Raises:
        OSError: if the home cannot be written.
    """
    name = f"{time.time_ns():020d}-{stage}-{uuid.uuid4().hex[:8]}"
    folder = home / "spool" / name
    with _only_one(home):
        folder.mkdir(parents=True)
        lock = _lock(folder)
        lock.acquire()
    return Spool(folder, lock, inherited=False)


def left_behind(home: Path) -> Iterator[Spool]:
    """The spools that no living process holds, the oldest first; each is held until closed.

    One whose process was killed ends with a record that says so. One that does not even say which
    stage it is of is moved to ``spool-damaged``, and said.
    """
    for folder in _folders(home):
        spool = _take(home, folder)
        if spool is None:
            continue
        if not spool.written:  # killed before it began
            spool.remove()
        elif _make_whole(spool):
            yield spool


def count_left_behind(home: Path) -> int:
    """How many there are of these."""
    taken = [spool for folder in _folders(home) if (spool := _take(home, folder)) is not None]
    for spool in taken:
        spool.close()
    return len(taken)


def _folders(home: Path) -> list[Path]:
    folder = home / "spool"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _take(home: Path, folder: Path) -> Spool | None:
    """Hold a spool, if nobody does; what was half removed is removed."""
    with _only_one(home):
        if folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        if not folder.is_dir():  # sent and removed meanwhile
            return None
        lock = _lock(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
    return Spool(folder, lock, inherited=True)


def _make_whole(spool: Spool) -> bool:
    """Close a killed stage's spool; whether it can be sent at all."""
    first = last = spool.next_record()
    while (record := spool.next_record()) is not None:
        last = record
    spool.rewind()
    if first is None or last is None or first.kind != "start":
        spool.set_all_aside()
        return False
    if last.kind != "end":
        spool.append("end", {"status": "KILLED", "time": last.time or _now()})
    return True


def _only_one(home: Path) -> FileLock:
    """Held while a spool is made, judged or removed, all of which take no time."""
    return FileLock(home / "spool.lock")


def _lock(folder: Path) -> FileLock:
    # The thread that sends lets go of what the main thread has made.
    return FileLock(folder / "lock", thread_local=False)


def _parse(number: int, line: bytes) -> Record:
    try:
        checksum, _, text = line.decode().rstrip("\n").partition(" ")
        if checksum == _checksum(text):
            known = json.loads(text)
            return Record(number, known["kind"], known["time"], known["content"])
    except ValueError:  # no UTF-8
        pass
    return Record(number, "damaged", 0, {})


def _cannot_keep(error: OSError, file: Path) -> OSError:
    return OSError(
        error.errno,
        f"what is tracked cannot be kept ({error.strerror}): make sure that the folder can be "
        "written and has free space, and run again",
        str(file),
    )


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_CHECKSUM_DIGITS]


def _now() -> int:
    return round(1000 * time.time())
