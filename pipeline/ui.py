"""Serve MLflow on what this machine has tracked: ``make ui``."""

from __future__ import annotations

import subprocess
import sys

from pipeline.home import biotune_home
from pipeline.tracking import tracking_uri


def main() -> int:
    """Run the MLflow server until it is stopped; its exit code."""
    home = biotune_home()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5000"),
        *("--backend-store-uri", tracking_uri(home)),
        *("--default-artifact-root", (home / "mlartifacts").as_uri()),
    ]
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:  # Ctrl-C is how one stops it
        return 0


if __name__ == "__main__":
    sys.exit(main())
