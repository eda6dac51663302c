"""The two images: what is in them, what is not, and who may run them."""

from __future__ import annotations

import hashlib
import io
import json
import time
import urllib.request

import pytest
from PIL import Image as PillowImage

from biotune import __version__
from tests.containers.conftest import Reproduced
from tests.containers.engine import Engine
from tests.containers.postgres import free_port
from tests.imports import ROOT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

IMAGES = ("biotune-pipeline", "biotune-serve")
ANYBODY = ("--rm", "--network", "none", "--user", "54321:54321", "--read-only")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_what_it_was_built_from(engine: Engine, name: str) -> None:
    image = engine.inspect(name)
    lock = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    assert image["Labels"]["biotune.lock.sha256"] == lock
    assert image["Labels"]["org.opencontainers.image.version"] == __version__
    revision = image["Labels"]["org.opencontainers.image.revision"].removesuffix("-dirty")
    assert engine.call("git", "cat-file", "-t", revision).stdout.strip() == "commit"
    assert image["User"] == "10001"


def test_an_image_without_the_lock_files_hash_is_not_built(engine: Engine) -> None:
    """As `docker build .` would, and then every stage would refuse it."""
    base = f"BASE_IMAGE={engine.base}"
    for words in ((), ("--build-arg", "LOCK_SHA256=0123")):
        for target in ("serve", "pipeline"):
            done = engine.run(
                *("build", "--target", target, "--build-arg", base, *words, "."), check=False
            )
            assert done.returncode != 0
            assert "build by: make images" in done.stdout + done.stderr


def test_the_server_is_small_and_without_torch(engine: Engine) -> None:
    sizes = {name: engine.inspect(name)["Size"] / 1e9 for name in IMAGES}
    print(f"\nsizes in GB: {sizes}")
    assert sizes["biotune-serve"] < 1
    done = engine.run(
        *("run", *ANYBODY, "--entrypoint", "python", "biotune-serve"),
        *("-c", "import importlib.util as i; print(i.find_spec('torch'), i.find_spec('pipeline'))"),
    )
    assert done.stdout.split() == ["None", "None"]


def test_the_pipeline_has_a_torch_with_cuda(engine: Engine) -> None:
    script = "import torch; print(torch.version.cuda, torch.__version__)"
    done = engine.run("run", *ANYBODY, "--entrypoint", "python", "biotune-pipeline", "-c", script)
    cuda, version = done.stdout.split()
    assert cuda[0].isdecimal()
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"torch=={version.partition('+')[0]}" in locked


def test_anybody_can_run_a_stage_as_the_images_command(engine: Engine) -> None:
    done = engine.run("run", *ANYBODY, "biotune-pipeline", "search", "--help")
    assert "biotune search --dry-run" in done.stdout
    done = engine.run("run", *ANYBODY, "biotune-pipeline", "backbones")
    assert "efficientnet_lite0" in done.stdout


def test_nothing_of_the_machine_that_built_it_is_in_an_image(engine: Engine) -> None:
    """No pip configuration, no certificates, no packages, no git history, no tests."""
    script = "ls -A /wheelhouse /run/secrets /source /opt/biotune /etc/pip.conf 2>/dev/null; true"
    for name in IMAGES:
        done = engine.run("run", *ANYBODY, "--entrypoint", "sh", name, "-c", script)
        present = set(done.stdout.split())
        assert not {file for file in present if file.endswith((".whl", ".crt", ".conf"))}
        assert not {"pip_conf", "ca_bundle", ".git", "tests", ".venv", "data"} & present
    history = json.dumps(engine.run("history", "--no-trunc", "biotune-pipeline").stdout)
    assert str(ROOT) not in history
    assert str(engine.cache) not in history


def test_the_server_answers_and_is_healthy(engine: Engine, reproduced: Reproduced) -> None:
    """As compose.yaml runs it: nobody's uid, nothing writable, no rights."""
    port = free_port()
    engine.run(
        *("run", "--detach", "--name", "biotune-test-serve", "--network", "host"),
        *("--user", "54321:54321", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *("--read-only", "--tmpfs", "/tmp"),  # noqa: S108 - the container's
        *("--volume", f"{reproduced.clone.folder / 'artifacts/deploy'}:/model:ro"),
        *("biotune-serve", "/model/model.onnx", "--host", "127.0.0.1", "--port", str(port)),
    )
    try:
        _wait_until_ready(engine, port)
        picture = io.BytesIO()
        PillowImage.new("RGB", (50, 40), "white").save(picture, "png")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict",
            data=picture.getvalue(),
            headers={"Content-Type": "image/png"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            (said,) = json.load(answer)["images"]
        assert said["label"] in {str(digit) for digit in range(10)}
        assert 0.1 <= said["probability"] <= 1
        engine.run("stop", "--time", "20", "biotune-test-serve")
        stopped = engine.run("wait", "biotune-test-serve").stdout.strip()
        assert stopped in {"0", "143"}, engine.run("logs", "biotune-test-serve").stderr
    finally:
        engine.run("rm", "--force", "biotune-test-serve")


def test_the_images_health_check_finds_a_running_server(
    engine: Engine, reproduced: Reproduced
) -> None:
    engine.run(
        *("run", "--detach", "--name", "biotune-test-health", "--network", "none"),
        *("--volume", f"{reproduced.clone.folder / 'artifacts/deploy'}:/model:ro"),
        "biotune-serve",
    )
    try:
        deadline = time.monotonic() + 60
        while engine.run("healthcheck", "run", "biotune-test-health", check=False).returncode:
            assert time.monotonic() < deadline, engine.run("logs", "biotune-test-health").stderr
            time.sleep(1)
    finally:
        engine.run("rm", "--force", "--time", "5", "biotune-test-health")


def _wait_until_ready(engine: Engine, port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            logs = engine.run("logs", "biotune-test-serve", check=False)
            assert time.monotonic() < deadline, logs.stdout + logs.stderr
            time.sleep(0.3)
