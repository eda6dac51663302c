"""Settings for all tests, and one export for all that look at one: it takes seconds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.exported import Exported

# The first example of a test may import a slow library, and CI machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A stage that is called in here would go on in a container, and the tests with it.
os.environ.pop("BIOTUNE_RUNTIME", None)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from tests.exported import export_digits  # torch, which many tests do without

    return export_digits(tmp_path_factory.mktemp("exported"))
