"""A real PostgreSQL for tests, from Debian's packages, that can be stopped and started."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from tempfile import mkdtemp


def find_postgres() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``: Debian keeps them off the PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = installed[-1] if installed else shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """One server with a database ``mlflow``, which this machine's users may use."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # Not in pytest's folder, which is closed to the user that the server runs as.
        self._folder = Path(mkdtemp(prefix="biotune-postgres-"))
        self._data, self._said = self._folder / "data", self._folder / "said"
        self.port = free_port()
        # As root it refuses to run; Debian's package makes a user for it.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._call("initdb", "--auth=trust", "--username=mlflow", "--no-sync", str(self._data))
        self.start()
        self._call("createdb", *("-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow"), "mlflow")

    @property
    def uri(self) -> str:
        """As SQLAlchemy has it."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories= -p {self.port}"
        self._call("pg_ctl", "-D", str(self._data), "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a shutdown of the machine does."""
        self._call("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")

    def remove(self) -> None:
        """Stop it, and forget all that it holds."""
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *words: str) -> None:
        # Not into a pipe, which would stay open as long as the server runs.
        with self._said.open("ab") as said:
            done = subprocess.run(
                [str(self._binaries / program), *words],
                user=self._user,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        assert done.returncode == 0, f"{program} {words}:\n{self._said.read_text()[-3000:]}"
