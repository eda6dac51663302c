"""Settings for all tests, and one export for all that look at one: it takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.exported import Exported

# The first example of a test may import a slow library, and CI machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from tests.exported import export_digits  # torch, which many tests do without

    return export_digits(tmp_path_factory.mktemp("exported"))
