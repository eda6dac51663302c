"""Shared by the tests of the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.params import Params, load_params

DEFAULT = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="session")
def default_params() -> Params:
    """The params file that the repository ships."""
    return load_params(DEFAULT)
