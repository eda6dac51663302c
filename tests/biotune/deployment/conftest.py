"""One export for all tests of this room: it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.exported import Exported, export_digits


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_digits(tmp_path_factory.mktemp("exported"))
