"""Commands in processes of their own, that faults are injected into, and the rows of the table."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.imports import ROOT
from tests.mlflow_server import all_runs, metric_points

FULL = os.environ.get("BIOTUNE_FAULTS") == "full"
"""``make faults`` sets it; ``make test-slow`` runs most kinds of fault in a short form."""


def whole_campaign(test: Callable[..., None]) -> Callable[..., None]:
    """For ``make faults`` alone."""
    skipped = pytest.mark.skipif(not FULL, reason="in the whole campaign: make faults")
    return pytest.mark.slow(skipped(test))


NAMES = ("best_plan.json", "evaluations.csv", "confirmations.csv", "metrics.json")
OPTIONS = ("--best-plan", "--evaluations", "--confirmations", "--metrics")


@dataclass
class Row:
    """One fault in the table."""

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0


ROWS: list[Row] = []
SKIPPED: list[str] = []


@dataclass
class Run:
    """A command of ours in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=500)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal for the process alone, as a scheduler or the kernel sends it."""
        self.process.send_signal(number)

    def workers(self) -> list[int]:
        """Process ids of its workers that are at work."""
        pids = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:  # gone meanwhile
                continue
            if parent == self.process.pid and b"spawn_main" in command:
                pids.append(int(entry.name))
        return pids


def _as_in_a_terminal() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Place:
    """A folder with prepared images and params, and a home of its own."""

    folder: Path
    home: Path

    @property
    def out(self) -> Path:
        return self.home.with_name(f"{self.home.name}-out")

    def start(self, stage: str, *words: str, uri: str = "", home: Path | None = None) -> Run:
        """Start a stage's command here, in a process group of its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
        environment |= {"BIOTUNE_HOME": str(home or self.home), "MLFLOW_TRACKING_URI": uri}
        self.out.mkdir(parents=True, exist_ok=True)
        log = self.out / f"{stage}-{time.time_ns()}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "biotune", stage, *words],
                cwd=self.folder,
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                preexec_fn=_as_in_a_terminal,
            )
        return Run(process, log)

    def search(self, uri: str = "", *, params: Path | None = None, home: Path | None = None) -> Run:
        """Start a search that writes to ``out``."""
        words = [
            word
            for option, name in zip(OPTIONS, NAMES, strict=True)
            for word in (option, str(self.out / name))
        ]
        words += ["--params", str(params)] if params else []
        return self.start("search", *words, uri=uri, home=home)

    def finish(self, stage: str, *words: str, uri: str = "") -> str:
        """Run a stage to its end; what it prints. Fails if it fails."""
        run = self.start(stage, *words, uri=uri)
        assert run.wait() == 0, run.output
        return run.output

    def results(self) -> dict[str, bytes]:
        """What the search wrote."""
        return {name: (self.out / name).read_bytes() for name in NAMES}

    def known(self, home: Path | None = None) -> int:
        """How many runs are in the store."""
        file = (home or self.home) / "evaluations.sqlite"
        if not file.exists():
            return 0
        with sqlite3.connect(file, timeout=60) as database:
            try:
                (count,) = database.execute("SELECT count(*) FROM curves").fetchone()
            except sqlite3.OperationalError:  # no table yet
                return 0
        return int(count)

    def wait_for(self, count: int, run: Run) -> None:
        """Wait until so many runs are in the store."""
        while self.known() < count:
            assert run.process.poll() is None, run.output
            time.sleep(0.05)


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted search gives."""

    results: dict[str, bytes]
    known: int
    tracked: list[tuple[object, ...]]


def tracked(uri: str) -> list[tuple[object, ...]]:
    """What is in MLflow of every run: name, status, parameters, number of points of its metrics."""
    runs = all_runs(uri)
    keys = [run.data.tags["biotune.key"] for run in runs if "biotune.key" in run.data.tags]
    assert len(set(keys)) == len(keys), "a run is there twice"
    return sorted(
        (
            str(run.info.run_name),
            run.info.status,
            sorted(run.data.params.items()),
            metric_points(uri, run),
        )
        for run in runs
    )
