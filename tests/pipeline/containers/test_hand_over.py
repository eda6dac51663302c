"""What an engine is told, by one that writes it down; tests/containers run real ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.containers import hand_over as containers
from tests.imports import ROOT
from tests.tiny import write_tiny_params

LOCK = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()

ENGINE = """#!{python}
import json, os, pathlib, sys
if sys.argv[1:3] == ["image", "inspect"] or sys.argv[1] == "inspect":
    print({inspected!r})
elif sys.argv[1] == "info":
    print({info!r})
else:
    told = {{"argv": sys.argv, "environment": dict(os.environ), "pid": os.getpid()}}
    pathlib.Path({out!r}).write_text(json.dumps(told))
    sys.exit(7)
"""


@dataclass(frozen=True)
class Engine:
    """An engine that runs nothing, and a checkout-like folder to call stages in."""

    folder: Path

    def install(self, name: str, labels: dict[str, str], info: str = "", **image: Any) -> None:
        """Put it on the PATH."""
        if name == "apptainer":
            inspected: Any = {"data": {"attributes": {"labels": labels}}}
        else:
            inspected = [{"Id": "sha256:1234", "Config": {"Labels": labels}, **image}]
        script = ENGINE.format(
            python=sys.executable,
            inspected=json.dumps(inspected),
            info=info,
            out=str(self.folder / "told.json"),
        )
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / name).write_text(script)
        (self.folder / "bin" / name).chmod(0o755)

    def call(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A stage's command as DVC calls it."""
        environment = {
            **{name: value for name, value in os.environ.items() if "MLFLOW" not in name},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "BIOTUNE_HOME": str(self.folder / "home"),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder / "work",
            env=environment,
            capture_output=True,
            text=True,
        )

    def told(self) -> dict[str, Any]:
        """What it was called with."""
        content: dict[str, Any] = json.loads((self.folder / "told.json").read_text())
        return content

    def options(self, name: str) -> list[str]:
        """Every value of one of its options."""
        argv = self.told()["argv"]
        return [argv[i + 1] for i, one in enumerate(argv) if one == name]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "work" / ".dvc").mkdir(parents=True)
    write_tiny_params(tmp_path / "work" / "params.yaml")
    return Engine(tmp_path)


def test_the_engine_takes_the_stages_place_with_its_arguments(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    done = engine.call("stages.search", "--prepared", "some/where", BIOTUNE_RUNTIME="docker")
    assert done.returncode == 7, done.stderr
    command = ["biotune-pipeline", "python", "-m", "stages.search", "--prepared", "some/where"]
    assert engine.told()["argv"][-len(command) :] == command
    assert engine.told()["argv"][1:3] == ["run", "--rm"]
    assert engine.options("--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert engine.options("--workdir") == [str(engine.folder / "work")]
    assert engine.options("--network") == ["none"]
    assert int(engine.options("--shm-size")[0]) > 2**28


def test_the_command_group_hands_over_as_well(engine: Engine) -> None:
    engine.install("podman", {"biotune.lock.sha256": LOCK})
    done = engine.call("stages.cli", "export", "--dry-run", BIOTUNE_RUNTIME="podman")
    assert done.returncode == 7, done.stderr
    assert engine.told()["argv"][-3:] == ["-m", "stages.export", "--dry-run"]


def test_help_and_wrong_options_need_no_container(engine: Engine) -> None:
    assert engine.call("stages.search", "--help", BIOTUNE_RUNTIME="docker").returncode == 0
    done = engine.call("stages.search", "--nonsense", BIOTUNE_RUNTIME="docker")
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_it_gets_the_image_home_and_mlflows_variables(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    engine.call(
        "stages.search",
        BIOTUNE_RUNTIME="docker",
        MLFLOW_TRACKING_URI="http://127.0.0.1:5000",
        MLFLOW_TRACKING_PASSWORD="hidden",
        UNRELATED="x",
    )
    told = engine.told()["environment"]
    assert told["BIOTUNE_RUNTIME"] == "host"
    assert told["BIOTUNE_IMAGE_DIGEST"] == "sha256:1234"
    names = engine.options("--env")
    assert {"BIOTUNE_RUNTIME", "BIOTUNE_HOME", "BIOTUNE_IMAGE_DIGEST", "PYTHONPATH"} <= set(names)
    assert {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"} <= set(names)
    assert "UNRELATED" not in names
    assert not any("hidden" in word for word in engine.told()["argv"])
    assert engine.options("--network") == ["host"]


def test_an_image_of_a_registry_is_named_by_its_digest_there(engine: Engine) -> None:
    engine.install(
        "podman",
        {"biotune.lock.sha256": LOCK},
        RepoDigests=["localhost/biotune@sha256:11", "example.org/biotune@sha256:22"],
    )
    engine.call("stages.search", BIOTUNE_RUNTIME="podman", BIOTUNE_IMAGE="example.org/biotune")
    assert engine.told()["environment"]["BIOTUNE_IMAGE_DIGEST"] == "example.org/biotune@sha256:22"


def test_the_checkout_the_home_and_what_lies_elsewhere_are_mounted(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    far = engine.folder / "far"
    for folder in ("images", "linked/cat", "out", "credentials"):
        (far / folder).mkdir(parents=True)
    (far / "images" / "cat").symlink_to(far / "linked" / "cat")
    (far / "credentials" / "key.pem").touch()
    write_tiny_params(far / "other.yaml", prepare__path=str(far / "images"))
    engine.call(
        *("stages.prepare", "--params", str(far / "other.yaml"), "--out", str(far / "out/new/it")),
        BIOTUNE_RUNTIME="docker",
        MLFLOW_TRACKING_URI=f"sqlite:///{far}/database/mlflow.db",
        MLFLOW_TRACKING_CLIENT_CERT_PATH=str(far / "credentials" / "key.pem"),
    )
    mounted = {volume.split(":")[0] for volume in engine.options("--volume")}
    assert {str(engine.folder / "work"), str(ROOT), str(engine.folder / "home")} <= mounted
    assert mounted >= {str(far)}  # the database's folder is not there yet, so the one above it
    assert engine.options("--network") == ["none"]


def test_links_out_of_the_images_folder_are_followed(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    far = engine.folder / "far"
    (far / "images").mkdir(parents=True)
    (far / "elsewhere" / "dogs").mkdir(parents=True)
    (far / "elsewhere" / "one" / "cat").mkdir(parents=True)
    (far / "elsewhere" / "one" / "cat" / "1.png").touch()
    (far / "images" / "dog").symlink_to(far / "elsewhere" / "dogs")
    (engine.folder / "work" / "data").symlink_to(far / "images")
    (far / "images" / "1.png").symlink_to(far / "elsewhere" / "one" / "cat" / "1.png")
    engine.call("stages.prepare", BIOTUNE_RUNTIME="docker")
    mounted = {volume.split(":")[0] for volume in engine.options("--volume")}
    for folder in ("images", "elsewhere/dogs", "elsewhere/one/cat"):
        assert str(far / folder) in mounted


def _inside(volumes: dict[str, str], looked_up: Path) -> Path:
    """Follow a path as a container does that sees these volumes alone; fails where it ends."""
    path = Path(os.path.abspath(looked_up))  # noqa: PTH100 - links stay
    for part in (*reversed(path.parents), path):
        around = [one for one in volumes if part.is_relative_to(one)]
        # A mount's own point is what it leads to; a link inside of one is a link in there as well.
        if around and str(part) not in volumes and part.is_symlink():
            return _inside(volumes, part.parent / part.readlink() / path.relative_to(part))
    assert any(path.is_relative_to(one) for one in volumes), f"{path} is not seen in {volumes}"
    return path


def test_links_lead_where_they_lead_on_the_host(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    work, far = engine.folder / "work", engine.folder / "far"
    for folder in ("home", "art", "hop/images/dog", "deep/cat", "deeper", "data"):
        (far / folder).mkdir(parents=True)
    (far / "deeper" / "1.png").touch()
    (work / ".biotune").symlink_to(far / "home")
    (engine.folder / "over").symlink_to(far)
    (work / "art").symlink_to(engine.folder / "over" / "art")
    (work / "data").symlink_to(far / "data")
    (far / "data" / "dog").symlink_to(engine.folder / "over" / "hop" / "images" / "dog")
    (far / "data" / "cat").symlink_to("../deep/cat")
    (far / "deep" / "cat" / "1.png").symlink_to(engine.folder / "over" / "deeper" / "1.png")
    done = engine.call(
        "stages.prepare", "--out", "art/prepared", BIOTUNE_RUNTIME="docker", BIOTUNE_HOME=""
    )
    assert done.returncode == 7, done.stderr
    volumes = dict(volume.split(":")[::2] for volume in engine.options("--volume"))
    for name in (".biotune", "art", "data/dog", "data/cat", "data/cat/1.png"):
        assert _inside(volumes, work / name).resolve() == (work / name).resolve()
    assert volumes[str(far / "home")] == volumes[str(far / "art")] == "rw"
    assert volumes[str(far / "deeper")] == volumes[str(far / "deep" / "cat")] == "ro"


def test_credentials_are_read_only_and_the_systems_folders_its_own(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    far = engine.folder / "far"
    for folder in ("torch", "certificates", "tracking"):
        (far / folder).mkdir(parents=True)
    (far / "key.json").touch()
    engine.call(
        "stages.search",
        BIOTUNE_RUNTIME="docker",
        TORCH_HOME=str(far / "torch"),
        GOOGLE_APPLICATION_CREDENTIALS=str(far / "key.json"),
        REQUESTS_CA_BUNDLE=str(far / "certificates"),
        MLFLOW_TRACKING_URI=str(far / "tracking"),
        CUDA_HOME="/usr/local",
        NVIDIA_LIBRARIES="/usr/lib",
        CUDA_BINARIES="/usr/share",
    )
    volumes = dict(volume.split(":")[::2] for volume in engine.options("--volume"))
    assert volumes[str(far / "torch")] == volumes[str(far / "tracking")] == "rw"
    assert volumes[str(far / "key.json")] == volumes[str(far / "certificates")] == "ro"
    assert not any(volume.startswith("/usr") for volume in volumes)


def test_a_model_elsewhere_comes_with_its_description(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    weights = engine.folder / "model.v2.safetensors"
    weights.touch()
    weights.with_suffix(".json").touch()
    engine.call("stages.export", "--model", str(weights), BIOTUNE_RUNTIME="docker")
    for file in (weights, weights.with_suffix(".json")):
        assert f"{file}:{file}:ro" in engine.options("--volume")


def test_what_is_written_inside_of_what_is_read_can_be_written(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    far = engine.folder / "far"
    (far / "results").mkdir(parents=True)
    (engine.folder / "work" / "data").mkdir()
    (engine.folder / "work" / "data" / "cat").symlink_to(far)
    engine.call(
        "stages.prepare",
        BIOTUNE_RUNTIME="docker",
        MLFLOW_TRACKING_URI=f"sqlite:///{far}/results/mlflow.db",
    )
    told = engine.options("--volume")
    assert told.index(f"{far}:{far}:ro") < told.index(f"{far}/results:{far}/results:rw")


@pytest.mark.parametrize(
    ("stage", "seen"), [("prepare", True), ("export", True), ("search", False)]
)
def test_only_stages_that_read_images_see_them(engine: Engine, stage: str, seen: bool) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    (engine.folder / "images").mkdir()
    write_tiny_params(
        engine.folder / "work" / "params.yaml", prepare__path=str(engine.folder / "images")
    )
    engine.call(f"stages.{stage}", BIOTUNE_RUNTIME="docker")
    volume = f"{engine.folder}/images:{engine.folder}/images:rw"
    assert (volume in engine.options("--volume")) == seen


def test_more_arguments_may_name_another_network(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    engine.call(
        "stages.search",
        BIOTUNE_RUNTIME="docker",
        BIOTUNE_RUNTIME_ARGS="--network=mine --label 'two words'",
    )
    argv = engine.told()["argv"]
    assert "--network" not in argv
    assert argv[argv.index("--network=mine") :][:3] == ["--network=mine", "--label", "two words"]


def test_docker_without_root_calls_the_caller_root(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK}, info="[name=seccomp name=rootless]")
    engine.call("stages.search", BIOTUNE_RUNTIME="docker")
    assert engine.options("--user") == ["0:0"]


def test_docker_that_maps_users_to_others_is_told_not_to(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK}, info="[name=seccomp name=userns]")
    engine.call("stages.search", BIOTUNE_RUNTIME="docker")
    assert engine.options("--userns") == ["host"]
    assert engine.options("--user") == [f"{os.getuid()}:{os.getgid()}"]


@pytest.mark.parametrize(("runtime", "character"), [("docker", ":"), ("apptainer", ",")])
def test_a_path_that_no_engine_takes_is_named(engine: Engine, runtime: str, character: str) -> None:
    engine.install(runtime, {"biotune.lock.sha256": LOCK})
    (engine.folder / "image").touch()
    home = str(engine.folder / f"a{character}b")
    variables = {"BIOTUNE_IMAGE": str(engine.folder / "image"), "BIOTUNE_HOME": home}
    done = engine.call("stages.search", BIOTUNE_RUNTIME=runtime, **variables)
    assert done.returncode == 1
    assert f"{home} cannot be mounted" in done.stderr


def test_more_arguments_with_an_open_quote_are_named(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    done = engine.call("stages.search", BIOTUNE_RUNTIME="docker", BIOTUNE_RUNTIME_ARGS="--label 'a")
    assert done.returncode == 1
    assert "BIOTUNE_RUNTIME_ARGS" in done.stderr
    assert "No closing quotation" in done.stderr


@pytest.mark.parametrize(
    ("uri", "network"),
    [
        ("", "none"),
        ("mlruns", "none"),
        ("file:///tmp/mlruns", "none"),
        ("https://mlflow.example.org", "host"),
        ("postgresql+psycopg2://u:p@host/db", "host"),
        ("databricks", "host"),
    ],
)
def test_the_network_is_there_for_a_server_alone(engine: Engine, uri: str, network: str) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    engine.call("stages.search", BIOTUNE_RUNTIME="docker", MLFLOW_TRACKING_URI=uri)
    assert engine.options("--network") == [network]


def test_an_engine_that_does_not_answer_is_not_said_to_have_no_image(engine: Engine) -> None:
    engine.install("docker", {})
    script = engine.folder / "bin" / "docker"
    script.write_text("#!/bin/sh\necho Cannot connect to the Docker daemon. >&2; exit 1\n")
    done = engine.call("stages.search", BIOTUNE_RUNTIME="docker")
    assert done.returncode == 1
    assert "docker does not answer (Cannot connect to the Docker daemon.)" in done.stderr
    assert "make images" not in done.stderr
    script.write_text("#!/bin/sh\ntest $1 = version || { echo No such image >&2; exit 1; }\n")
    done = engine.call("stages.search", BIOTUNE_RUNTIME="docker")
    assert "docker has no image biotune-pipeline (No such image)" in done.stderr


def test_certificates_and_proxies_are_handed_in(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    handed = {"HTTPS_PROXY": "x", "no_proxy": "x", "SSL_CERT_FILE": "x", "HF_TOKEN": "x"}
    engine.call("stages.search", BIOTUNE_RUNTIME="docker", CUBLAS_WORKSPACE_CONFIG=":8", **handed)
    assert {*handed, "CUBLAS_WORKSPACE_CONFIG"} <= set(engine.options("--env"))


def test_apptainer_gets_its_variables_its_own_way(engine: Engine) -> None:
    engine.install("apptainer", {"biotune.lock.sha256": LOCK})
    image = engine.folder / "image.sif"
    image.write_bytes(b"an image")
    done = engine.call("stages.search", BIOTUNE_RUNTIME="apptainer", BIOTUNE_IMAGE=str(image))
    assert done.returncode == 7, done.stderr
    argv = engine.told()["argv"]
    assert argv[1:4] == ["exec", "--cleanenv", "--no-home"]
    assert argv[-4:] == [str(image), "python", "-m", "stages.search"]
    assert argv[argv.index("--net") :][:3] == ["--net", "--network", "none"]
    assert f"{ROOT}:{ROOT}:rw" in engine.options("--bind")
    told = engine.told()["environment"]
    digest = hashlib.sha256(b"an image").hexdigest()
    assert told["APPTAINERENV_BIOTUNE_IMAGE_DIGEST"] == f"sha256:{digest}"
    more = {"BIOTUNE_IMAGE": str(image), "BIOTUNE_RUNTIME_ARGS": "--network=host"}
    engine.call("stages.search", BIOTUNE_RUNTIME="apptainer", **more)
    assert not [word for word in engine.told()["argv"] if word.startswith("--net")]
    more["BIOTUNE_RUNTIME_ARGS"] = "--network host --nv"
    engine.call("stages.search", BIOTUNE_RUNTIME="apptainer", **more)
    argv = engine.told()["argv"]
    assert not [word for word in argv if word.startswith("--net") or word == "host"]
    assert "--nv" in argv


@pytest.mark.parametrize(
    ("visible", "more", "all_of_them"),
    [
        (None, [], True),
        ("1", ["--device", "/dev/fuse"], True),
        ("", [], False),
        (None, ["--gpus=device=1"], False),
        (None, ["--device", "nvidia.com/gpu=1"], False),
    ],
)
def test_gpus_can_be_switched_off_and_chosen(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, more: list[str], all_of_them: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(containers, "_GPU_DEVICES", ("/dev/null",))
    assert containers.gives_gpus(more) == all_of_them
    monkeypatch.setattr(containers, "_GPU_DEVICES", ("/dev/no-such-device",))
    assert not containers.gives_gpus(more)


def test_apptainers_caches_are_where_they_can_be_written(engine: Engine) -> None:
    """HOME is the caller's there, whose folder is not."""
    engine.install("apptainer", {"biotune.lock.sha256": LOCK})
    image = engine.folder / "image.sif"
    image.touch()
    engine.call("stages.search", BIOTUNE_RUNTIME="apptainer", BIOTUNE_IMAGE=str(image))
    told = engine.told()["environment"]
    for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
        assert told[f"APPTAINERENV_{name}"].startswith(str(engine.folder / "home"))


@pytest.mark.parametrize("runtime", ["docker", "podman"])
@pytest.mark.parametrize("labels", [{}, {"biotune.lock.sha256": "0123456789abcdef"}])
def test_an_image_of_another_lock_file_is_refused(
    engine: Engine, runtime: str, labels: dict[str, str]
) -> None:
    engine.install(runtime, labels)
    done = engine.call("stages.search", BIOTUNE_RUNTIME=runtime)
    assert done.returncode == 1
    for word in (
        "biotune-pipeline",
        "requirements.lock",
        LOCK[:12],
        f"make images ENGINE={runtime}",
    ):
        assert word in done.stderr
    assert not (engine.folder / "told.json").exists()


def test_an_unknown_runtime_says_which_there_are(engine: Engine) -> None:
    done = engine.call("stages.search", BIOTUNE_RUNTIME="dokcer")
    assert done.returncode == 1
    assert "BIOTUNE_RUNTIME is 'dokcer'" in done.stderr
    assert "host, docker, podman, apptainer" in done.stderr


def test_an_engine_that_is_not_there_is_named(engine: Engine) -> None:
    done = engine.call("stages.search", BIOTUNE_RUNTIME="podman", PATH=str(engine.folder))
    assert done.returncode == 1
    assert "there is no podman on the PATH" in done.stderr


def test_what_would_cover_the_containers_own_files_is_refused(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    done = engine.call("stages.search", "--best-plan", "/plan.json", BIOTUNE_RUNTIME="docker")
    assert done.returncode == 1
    assert "/ would have to be mounted" in done.stderr
    done = engine.call("stages.search", "--prepared", "/usr/lib", BIOTUNE_RUNTIME="docker")
    assert "/usr/lib would have to be mounted" in done.stderr


def test_a_database_beside_the_checkout_is_reached_without_a_network(engine: Engine) -> None:
    engine.install("docker", {"biotune.lock.sha256": LOCK})
    (engine.folder / "tracked").mkdir()
    uri = f"sqlite:///{engine.folder}/tracked/mlflow.db"
    engine.call("stages.search", BIOTUNE_RUNTIME="docker", MLFLOW_TRACKING_URI=uri)
    assert f"{engine.folder}/tracked:{engine.folder}/tracked:rw" in engine.options("--volume")
    assert engine.options("--network") == ["none"]
