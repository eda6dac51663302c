"""On a machine with only ``biotune[serve]``: no torch, no checkout, the page and the answers."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.exported import Exported
from tests.imports import ROOT
from tests.serve_process import ServeProcess

pytestmark = pytest.mark.slow


def pip(python: Path | str, *words: str) -> None:
    command = [str(python), "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_wheel_with_its_extra_serves_the_page_and_answers(
    tmp_path: Path, exported: Exported
) -> None:
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".")
    (wheel,) = tmp_path.glob("biotune-*.whl")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    lock = ROOT / "requirements.lock"
    pip(environment / "bin/python", "install", "-c", str(lock), f"{wheel}[serve]")
    installed = {path.name.partition("-")[0] for path in environment.glob("lib/*/site-packages/*")}
    assert not {"torch", "mlflow", "dvc", "sklearn", "onnx"} & installed

    image = BytesIO()
    Image.fromarray(exported.prepared.images[0]).save(image, "PNG")
    program = (str(environment / "bin" / "biotune"),)
    with ServeProcess(exported.path, program=program) as server:
        assert b"BioTune" in server.get("/").body
        assert server.get("/page.js").status == 200
        reply = server.post(image.getvalue())
        assert (reply.status, len(reply.json["images"])) == (200, 1)
        assert server.stop() == (0, "")
