"""What has not arrived in MLflow, as another process sees it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def unsent(home: Path) -> list[tuple[str, int]]:
    """The stages that a home's outbox has, and how many records of each have arrived nowhere."""
    with closing(sqlite3.connect(home / "outbox" / "records.sqlite", timeout=60)) as database:
        return database.execute(
            "SELECT stage, sum(sent IS NULL) FROM records GROUP BY stage ORDER BY stage"
        ).fetchall()
