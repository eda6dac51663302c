"""Settings for all tests, what may run side by side, and one export for all that look at one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.imports import ROOT

if TYPE_CHECKING:
    from tests.exported import Exported

# The first example of a test may import a slow library, and CI machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A stage that is called in here would go on in a container, and the tests with it.
os.environ.pop("BIOTUNE_RUNTIME", None)

# Tests run side by side, one to a core; and the number of threads decides the last bits.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = ("clone", "pipeline", "alone", "exported", "prepared")
"""Fixtures that take long to make: the tests of each stay together, and begin first."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that must not be torn apart: by a shared fixture, else by file."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: (*SHARED, _group(item)).index(_group(item)))


def _group(item: pytest.Item) -> str:
    """The first of the shared fixtures that it uses, or its file."""
    used = getattr(item, "fixturenames", ())
    shared = (name for name in SHARED if name in used)
    return next(shared, item.path.relative_to(ROOT).as_posix())


@pytest.fixture(autouse=True)
def _home_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test finds what another has trained or tracked, or touches the checkout's home."""
    home = tmp_path_factory.getbasetemp() / "homes" / os.urandom(8).hex()
    monkeypatch.setenv("BIOTUNE_HOME", str(home))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from tests.exported import export_digits  # torch, which many tests do without

    return export_digits(tmp_path_factory.mktemp("exported"))
