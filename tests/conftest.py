"""Settings for all tests, what may run side by side, and one export for all that look at one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

    from tests.exported import Exported

# The first example of a test may import a slow library, and CI machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A stage that is called in here would go on in a container, and the tests with it.
os.environ.pop("BIOTUNE_RUNTIME", None)

# Tests run side by side, one to a core; and the number of threads decides the last bits.
os.environ["OMP_NUM_THREADS"] = "1"

TOGETHER = (
    ("tests/end_to_end/test_dvc_repro.py",),
    ("tests/faults/",),
    tuple(
        f"tests/stages/test_{stage}.py"
        for stage in ("prepare", "search", "finetune", "evaluate", "export")
    ),
    (
        "tests/biotune/commands/",
        "tests/biotune/deployment/",
        "tests/biotune/serving/",
        "tests/pipeline/proof/test_export_formats.py",
        "tests/pipeline/proof/test_agreement.py",
        "tests/end_to_end/",
    ),
)
"""What shares a fixture that takes long to make, or must not run beside itself: one process runs
each, from the start. Every other file is for whichever process is free."""


def _group(nodeid: str) -> int | str:
    """The number of the group that a test is in, or its file."""
    path = nodeid.partition("::")[0]
    numbers = (n for n, begins in enumerate(TOGETHER) if path.startswith(begins))
    return next(numbers, path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups first: they take longest."""
    last = len(TOGETHER)
    numbered = {item: _group(item.nodeid) for item in items}
    items.sort(key=lambda item: n if isinstance(n := numbered[item], int) else last)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Side by side by group, whatever ``--dist`` says."""
    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(_group(nodeid))

    return ByGroup(config, log)


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
