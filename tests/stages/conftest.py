"""A whole tiny pipeline, run once by its commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from biotune.commands.group import main
from tests.tiny import PICTURES, write_pictures, write_tiny_params

BACKGROUND = "#204060"
"""Not the default, so that it is seen to be handed on."""


@dataclass(frozen=True)
class Pipeline:
    """Where it ran, and what each command printed."""

    folder: Path
    results: dict[str, Result]

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Every stage, by its command, in an empty folder with a params file."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_pictures(folder / "data")
    # Every form is kept: what a network that has hardly learned loses in int8 is luck.
    kept = {"export__int8_max_drop": 1.0, "export__fp16_max_drop": 1.0}
    params = {**PICTURES, **kept, "prepare__background": BACKGROUND}
    write_tiny_params(folder / "params.yaml", **params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BIOTUNE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        results = {
            stage: CliRunner().invoke(main, [stage])
            for stage in ("prepare", "search", "finetune", "evaluate", "export")
        }
    return Pipeline(folder, results)


@pytest.fixture
def in_pipeline(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The same, with its folder as the current one."""
    monkeypatch.chdir(pipeline.folder)
    monkeypatch.setenv("BIOTUNE_HOME", str(pipeline.folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return pipeline
