"""``dvc repro`` in one container, as ``compose.yaml`` and a Kubernetes Job run it, is stopped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.containers.engine import Engine
from tests.stages.test_supervise import make_pipeline

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

NAME = "biotune-test-supervise"


def test_stopping_the_container_ends_the_stage_in_order_and_leaves_no_lock(
    engine: Engine, tmp_path: Path
) -> None:
    make_pipeline(tmp_path)
    words = ("--user", "0:0", "--network", "none", "--volume", f"{tmp_path}:/work")
    command = ("--entrypoint", "python", "biotune-pipeline", "-m", "stages.supervise")
    engine.run("run", "--detach", "--name", NAME, *words, *command, "dvc", "repro")
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline, engine.run("logs", NAME).stderr
            time.sleep(0.2)
        engine.run("stop", "--time", "60", NAME)
        code = engine.run("container", "inspect", NAME, "--format", "{{.State.ExitCode}}")
        assert code.stdout.strip() == "143"
        assert (tmp_path / "ended").read_text() == "in order"
    finally:
        engine.run("rm", "--force", NAME)
    engine.run("run", "--rm", *words, *command, "dvc", "repro")
    assert (tmp_path / "out").exists()
