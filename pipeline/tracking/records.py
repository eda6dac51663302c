"""A spool's lines: what they say, and whether it is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_CHECKSUM_DIGITS: Final = 16


@dataclass(frozen=True)
class Record:
    """One thing to be sent to MLflow.

    Attributes:
        number: names it for ever, from 0; -1 if it is damaged.
        kind: what it is; ``damaged`` if its line is not what was written.
        time: when it happened, in milliseconds since 1970.
        content: JSON values.
        begin: of its line, in bytes.
        end: of its line. Bytes, because a flipped bit may join lines or cut them, but moves none.
    """

    number: int
    kind: str
    time: int
    content: Mapping[str, Any]
    begin: int
    end: int


def to_line(number: int, kind: str, time: int, content: Mapping[str, Any]) -> bytes:
    """A record's line, with a checksum."""
    text = json.dumps({"number": number, "kind": kind, "time": time, "content": content})
    return f"{_checksum(text)} {text}\n".encode()


def parse(line: bytes, begin: int, place: int) -> Record:
    """The record of a line.

    Args:
        line: as it was read.
        begin: where, in bytes.
        place: among the lines; numbers those that were written without a number.
    """
    end = begin + len(line)
    try:
        checksum, _, text = line.decode().rstrip("\n").partition(" ")
        if checksum == _checksum(text):
            known = json.loads(text)
            number = known.get("number", place)
            return Record(number, known["kind"], known["time"], known["content"], begin, end)
    except ValueError:  # no UTF-8
        pass
    return Record(-1, "damaged", 0, {}, begin, end)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_CHECKSUM_DIGITS]
