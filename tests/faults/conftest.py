"""A small real search that faults are injected into, and the table of what it survived."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.faults.campaign import ROWS, SKIPPED, Place, Reference, Row, tracked
from tests.tiny import PICTURES, write_pictures, write_tiny_params


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in here is marked ``faults``."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What was not run must not pass for survived."""
    if report.skipped and "tests/faults/" in report.nodeid:
        SKIPPED.append(report.nodeid.rpartition("::")[2])


def pytest_terminal_summary() -> None:
    """Print the campaign's table."""
    if not ROWS:
        return
    table = Table(title="Fault campaign", title_justify="left")
    columns = ("fault", "injected", "survived", "finished evaluations lost")
    for name in columns:
        table.add_column(name, justify="left" if name == "fault" else "right")
    for row in ROWS:
        table.add_row(row.fault, str(row.injected), str(row.survived), str(row.lost))
    console = Console(width=100)
    console.print(table)
    for name in SKIPPED:
        console.print(f"not run: {name}")
    injected, survived = (sum(getattr(r, n) for r in ROWS) for n in ("injected", "survived"))
    lost = sum(row.lost for row in ROWS)
    whole = "all survived" if (injected, lost) == (survived, 0) else "NOT ALL SURVIVED"
    console.print(f"{injected} faults injected, {survived} survived, {lost} lost: {whole}")


@pytest.fixture
def injected() -> Callable[[str], Row]:
    """Add a fault to the table; the test raises ``survived`` when it has seen it survived."""

    def begin(fault: str, times: int = 1) -> Row:
        ROWS.append(Row(fault, injected=times))
        return ROWS[-1]

    return begin


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny params, and images prepared."""
    folder = tmp_path_factory.mktemp("faults")
    # Never racing for time: which runs are trained must not depend on the machine. Two workers, and
    # so many epochs that a kill comes before the last.
    training = {"search__epochs": 3, "search__patience": 3, "runtime__workers": 2}
    training |= {"finetune__epochs": 60, "finetune__patience": 60}
    write_pictures(folder / "data")
    write_tiny_params(folder / "params.yaml", **PICTURES, **training)
    Place(folder, folder / "home-prepare").finish("prepare")
    return folder


@pytest.fixture(scope="session")
def reference(prepared: Path) -> Reference:
    """The search without any fault."""
    place = Place(prepared, prepared / "home-reference")
    run = place.search()
    assert run.wait() == 0, run.output
    uri = f"sqlite:///{place.home / 'mlflow.db'}"
    return Reference(place.results(), place.known(), tracked(uri))


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Iterator[Place]:
    """An empty home."""
    yield Place(prepared, tmp_path / "home")
    shutil.rmtree(tmp_path, ignore_errors=True)
