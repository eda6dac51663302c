"""What a linter and the compose specification say of the files; no engine is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGINT, SIGTERM
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
        target = "serve" if name == "serve" else "pipeline"
        assert services[name]["image"].endswith(f":-biotune-{target}}}")
        # Compose would neither know the label's value nor, in a registry, the image.
        assert "build" not in services[name]
        assert services[name]["pull_policy"] == "never"
        assert f" AS {target}\n" in dockerfile


def test_lineage_can_know_the_image(services: dict[str, Any]) -> None:
    for name in ("pipeline", "pipeline-cpu"):
        said = services[name]["environment"]["BIOTUNE_IMAGE_DIGEST"]
        assert said == "${BIOTUNE_IMAGE_DIGEST:-}"


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/health", "/healthz") else 404)
        self.end_headers()


@pytest.mark.parametrize("where", ["Dockerfile", "compose.yaml"])
def test_a_health_check_asks_no_proxy(services: dict[str, Any], where: str) -> None:
    if where == "Dockerfile":
        (line,) = re.findall(r"^    CMD (\[.*)$", (ROOT / where).read_text(), re.MULTILINE)
        program, option, script = json.loads(line)
    else:
        _, program, option, script = services["mlflow"]["healthcheck"]["test"]
    assert (program, option) == ("python", "-c")
    nobody = "http://127.0.0.1:9"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked, changes = re.subn(r"\b[58]000\b", str(server.server_port), script)
        done = subprocess.run(
            [sys.executable, option, asked], env=os.environ | {"http_proxy": nobody}
        )
        server.shutdown()
    assert changes == 1
    assert done.returncode == 0
    refused = subprocess.run([sys.executable, option, asked], capture_output=True)
    assert refused.returncode != 0


def test_a_container_with_dvc_in_it_is_stopped_in_order(services: dict[str, Any]) -> None:
    """DVC heeds no SIGTERM, and a stage needs more than the ten seconds of an engine."""
    *interrupt, biotune = json.loads(
        re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    )
    assert biotune == "biotune"
    assert interrupt == ["dumb-init", "--rewrite", f"{SIGTERM:d}:{SIGINT:d}", "--"]
    for name in ("pipeline", "pipeline-cpu"):
        assert services[name]["entrypoint"] == interrupt
        assert services[name]["command"] == ["dvc", "repro"]
        assert services[name]["stop_grace_period"] == "2m"
    (job,) = [manifest for manifest in _kubernetes() if manifest["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [*interrupt, "dvc", "repro"]


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
