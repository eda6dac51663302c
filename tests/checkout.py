"""A checkout of its own for a test: the working tree as it is, in a repository of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.imports import ROOT
from tests.tiny import write_pictures, write_tiny_params
from tests.tree import copy_tree


@dataclass(frozen=True)
class Clone:
    """A checkout with a home of its own, and with variables and params that its commands get."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of its commands: this one, less what would lead them elsewhere."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # pytest's settings are not for the stages' processes.
            "PYTHONWARNINGS": "default",
        }
        for name in ("BIOTUNE_HOME", "BIOTUNE_RUNTIME", "MLFLOW_TRACKING_URI"):
            environment.pop(name, None)
        return environment | dict(self.variables)

    def run(self, *command: str) -> str:
        """Run a command of this environment in the clone; its output. Fails if it fails."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def repro(self) -> set[str]:
        """``dvc repro``; the stages that ran, beside ``inputs``, which always does."""
        ran = set(re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro")))
        assert "inputs" in ran
        return ran - {"inputs"}

    def read(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())

    def set(self, **changes: Any) -> None:
        write_tiny_params(self.folder / "params.yaml", **{**self.params, **changes})

    def search_runs(self) -> list[Any]:
        client = MlflowClient(f"sqlite:///{self.folder / '.biotune' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("biotune")
        assert experiment is not None
        where = "tags.`biotune.stage` = 'search'"
        return list(client.search_runs([experiment.experiment_id], where))


def make_clone(folder: Path, params: Mapping[str, Any], **variables: str) -> Clone:
    """The working tree as it is, committed in a repository of its own.

    Args:
        folder: empty.
        params: changes to the tiny ones. Pictures for ``PICTURES`` are there.
        variables: of the environment of its commands.
    """
    copy_tree(ROOT, folder)
    write_pictures(folder / "data")
    copy = Clone(folder, variables, params)
    copy.set()
    copy.run("git", "config", "user.name", "A tester")
    copy.run("git", "config", "user.email", "tester@example.org")
    copy.run("git", "add", ".")
    copy.run("git", "commit", "--quiet", "-m", "The working tree")
    return copy
