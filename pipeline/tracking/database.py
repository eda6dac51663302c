"""MLflow's own SQLite file: made whole or not at all."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from biotune.files import put_file, scratch_beside


def own_database(home: Path) -> str:
    """The URI of the file in the home folder."""
    path = str(home / "mlflow.db")
    if unquote(path) != path or "?" in path:  # SQLAlchemy decodes %XX, and cuts options off at ?
        path = path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def destination(uri: str, home: Path) -> str:
    """A store's name to be written down: no password, and the same when the home is moved."""
    if uri == own_database(home):
        return "mlflow.db of the home"
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def database_lock(home: Path, uri: str) -> FileLock:
    """What only one process of this home may do at a time in a store."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return FileLock(home / f"mlflow-{name}.lock")


def make_database(uri: str) -> None:
    """Make a store's SQLite file if there is none, while :func:`database_lock` is held.

    MLflow would make it in place, by dozens of migrations that are not transactional: killed
    within these seconds, it could never use the file again.

    Args:
        uri: of any store; only a SQLite file that is not there, or is empty, is made.
    """
    file = _sqlite_file(uri)
    if file is None or (file.exists() and file.stat().st_size):
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for chatty in ("alembic", "mlflow.store.db.utils"):  # hundreds of lines for a new database
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with scratch_beside(file) as scratch:
        fresh = scratch / "mlflow.db"
        artifacts = (file.parent / "mlartifacts").as_uri()
        store = SqlAlchemyStore(own_database(scratch), artifacts)  # type: ignore[no-untyped-call]
        store.engine.dispose()  # or what is still open would follow the file to its new name
        put_file(fresh, file)


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return None if name in {None, "", ":memory:"} else Path(str(name))
