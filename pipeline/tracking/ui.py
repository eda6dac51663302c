"""Serve MLflow on what this machine has tracked."""

from __future__ import annotations

import subprocess
import sys

from pipeline.home import biotune_home
from pipeline.tracking.database import database_lock, make_database
from pipeline.tracking.stage_run import tracking_uri


def serve(port: int) -> int:
    """Run the MLflow server, on this machine alone, until it is stopped; its exit code.

    Args:
        port: to listen at.
    """
    home = biotune_home()
    uri = tracking_uri(home)
    with database_lock(home, uri):
        make_database(uri)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", uri),
        *("--default-artifact-root", (home / "mlartifacts").as_uri()),
    ]
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:  # Ctrl-C is how one stops it
        return 0
