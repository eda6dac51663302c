"""What a linter and the compose specification say of the files; no engine is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT

BIN = Path(sys.executable).parent


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_compose_yaml_is_what_the_specification_allows() -> None:
    done = subprocess.run(
        [
            BIN / "check-jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            ROOT / "compose.yaml",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return dict(content["services"])


def test_every_open_port_is_bound_to_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8000:8000"]


def test_the_services_images_are_those_that_make_builds(services: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name in ("mlflow", "pipeline", "pipeline-cpu", "serve"):
        target = services[name]["build"]["target"]
        assert services[name]["image"].endswith(f":-biotune-{target}}}")
        assert f" AS {target}\n" in dockerfile


def test_a_container_with_dvc_in_it_is_stopped_in_order(services: dict[str, Any]) -> None:
    """DVC heeds no SIGTERM, and a stage needs more than the ten seconds of an engine."""
    supervise = ["python", "-m", "stages.supervise"]
    for name in ("pipeline", "pipeline-cpu"):
        assert services[name]["entrypoint"] == supervise
        assert services[name]["command"] == ["dvc", "repro"]
        assert services[name]["stop_grace_period"] == "2m"
    (job,) = [one for one in _kubernetes() if one["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [*supervise, "dvc", "repro"]


def _kubernetes() -> list[dict[str, Any]]:
    """The objects in the documentation."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    return list(yaml.safe_load_all(text.partition("```yaml\n")[2].partition("```")[0]))


def test_what_a_build_may_read_is_what_the_dockerfile_copies() -> None:
    """``.dockerignore`` leaves out all else: images of patients, results, history, secrets."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word.rstrip("/")
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == allowed
