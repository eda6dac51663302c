"""What is to be sent to MLflow, on disk before it is sent: a folder for each stage's run.

A folder in ``spool/`` of the home belongs to the process that holds its lock. What a process has
left behind, sent or not, is taken up by the next one: no record is lost, whatever was killed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from biotune.files import synchronise
from pipeline.tracking.records import Record, parse, to_line

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"\.?\d{20}-[a-z]+-[0-9a-f]{8}")
"""Of a spool's folder; with a dot while it is being removed. Whatever else is there is not ours."""


class Spool:
    """The records of one stage's run, in their order; made by :func:`new_spool`.

    One thread appends, another reads and notes what is sent; what is read is not kept in memory.

    Args:
        folder: with ``records.jsonl``, ``sent.json`` and the copies of files.
        lock: held by this process.
        inherited: whether another process has written it.

    Attributes:
        written: how many lines there are.
        destination: where its stage was to send it; None if that is not known.
    """

    def __init__(self, folder: Path, lock: FileLock, *, inherited: bool) -> None:
        self.folder, self.inherited = folder, inherited
        self.destination: str | None = None
        self._lock = lock
        self._file = folder / "records.jsonl"
        self._offset = 0  # of the next line that is read
        self._read = 0  # how many lines were
        self._size, self.written, self._numbers = self._close_torn() if inherited else (0, 0, 0)

    @property
    def name(self) -> str:
        """Tells it from any other, on any machine."""
        return self.folder.name

    def append(self, kind: str, content: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            OSError: naming the file, if it cannot be written; the spool stays as it was.
        """
        line = to_line(self._numbers, kind, _now(), content)
        try:
            with self._file.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            if not self._size:
                synchronise(self.folder)
        except BaseException as error:  # Ctrl-C, too, may come while the disk is waited for
            if self._file.exists():
                os.truncate(self._file, self._size)
            if isinstance(error, OSError):
                raise _cannot_keep(error, self._file) from error
            raise
        self._numbers += 1
        self.written += 1
        self._size += len(line)  # last: only now is it read

    def keep_file(self, file: Path) -> str:
        """Copy a file, which may be changed before it is sent; the copy's place in the spool.

        Raises:
            OSError: if either cannot be read or written.
        """
        place = f"files/{self._numbers}/{file.name}"
        try:
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self.folder / place)
            synchronise(self.folder / place)
            synchronise((self.folder / place).parent)
        except OSError as error:
            raise _cannot_keep(error, self.folder / place) from error
        return place

    def next_record(self) -> Record | None:
        """The record after the last that this gave; None while there is no more."""
        if self._offset >= self._size:
            return None
        begin, line = self._offset, self._line(self._offset)
        if not line.endswith(b"\n"):
            return None
        self._offset += len(line)
        self._read += 1
        return parse(line, begin, self._read - 1)

    def rewind(self) -> None:
        """Begin again with the first record."""
        self._offset = self._read = 0

    def sent(self, destination: str) -> int:
        """How many bytes of records have arrived there; those sent elsewhere do not count."""
        try:
            noted = json.loads((self.folder / "sent.json").read_text(encoding="utf-8"))
            sent = int(noted["bytes"]) if noted["destination"] == destination else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # they are sent again, which changes nothing there
        return sent if 0 <= sent <= self._size else 0

    def note_sent(self, end: int, destination: str) -> None:
        """Note that the records until this byte have arrived."""
        beside = self.folder / "sent.partial"
        beside.write_text(json.dumps({"bytes": end, "destination": destination}))
        beside.replace(self.folder / "sent.json")

    def lines_until(self, end: int) -> int:
        """How many lines end at this byte or before."""
        content = self._file.read_bytes() if self._file.exists() else b""
        return content[:end].count(b"\n")

    def set_aside(self, record: Record, reason: str) -> None:
        """Keep what can never be sent where a person can look at it, and say so."""
        aside = self._aside()
        with (aside / f"{self.name}.jsonl").open("ab") as stream:
            stream.write(self._line(record.begin))
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

    def _line(self, begin: int) -> bytes:
        try:
            with self._file.open("rb") as stream:
                stream.seek(begin)
                return stream.readline()
        except FileNotFoundError:
            return b""

    def _close_torn(self) -> tuple[int, int, int]:
        """Cut off a last line that its process did not finish; bytes, lines, and numbers in use."""
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(self._file, whole)
        lines = content[:whole].split(b"\n")[:-1]
        known = [parse(line, 0, number).number for number, line in enumerate(lines)]
        return whole, len(lines), max([len(lines), *(number + 1 for number in known)])


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
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one for one in names if _NAME.fullmatch(one.name)]


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
    spool.destination = first.content.get("destination")
    return True


def _only_one(home: Path) -> FileLock:
    """Held while a spool is made, judged or removed, all of which take no time."""
    return FileLock(home / "spool.lock")


def _lock(folder: Path) -> FileLock:
    # The thread that sends lets go of what the main thread has made.
    return FileLock(folder / "lock", thread_local=False)


def _cannot_keep(error: OSError, file: Path) -> OSError:
    return OSError(
        error.errno,
        f"what is tracked cannot be kept ({error.strerror}): make sure that the folder can be "
        "written and has free space, and run again",
        str(file),
    )


def _now() -> int:
    return round(1000 * time.time())
