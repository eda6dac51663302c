"""What an engine is told, by one that writes it down; tests/containers run real ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest

from pipeline.containers.hand_over import gives_gpus
from tests.imports import ROOT
from tests.tiny import write_tiny_params

LOCK = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
LABELS = {"biotune.lock.sha256": LOCK}

ENGINE = """#!{python}
import json, os, pathlib, sys
if sys.argv[1:3] == ["image", "inspect"] or sys.argv[1] == "inspect":
    print({inspected!r})
elif sys.argv[1] == "info":
    print({info!r})
else:
    told = {{"argv": sys.argv, "environment": dict(os.environ)}}
    pathlib.Path({out!r}).write_text(json.dumps(told))
    sys.exit(7)
"""


@dataclass(frozen=True)
class Engine:
    """An engine that runs nothing, and a checkout-like folder to call stages in."""

    folder: Path
    name: str = "docker"

    def install(self, labels: dict[str, str] = LABELS, info: str = "", **image: Any) -> Self:
        """Put it on the PATH, with an image."""
        if self.name == "apptainer":
            inspected: Any = {"data": {"attributes": {"labels": labels}}}
        else:
            inspected = [{"Id": "sha256:1234", "Config": {"Labels": labels}, **image}]
        script = ENGINE.format(
            python=sys.executable,
            inspected=json.dumps(inspected),
            info=info,
            out=str(self.folder / "told.json"),
        )
        (self.folder / "bin").mkdir(exist_ok=True)
        (self.folder / "bin" / self.name).write_text(script)
        (self.folder / "bin" / self.name).chmod(0o755)
        return self

    def call(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A stage's command as DVC calls it."""
        environment = {
            **{name: value for name, value in os.environ.items() if "MLFLOW" not in name},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "BIOTUNE_HOME": str(self.folder / "home"),
            "BIOTUNE_RUNTIME": self.name,
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder / "work",
            env=environment,
            capture_output=True,
            text=True,
        )

    def hand_over(self, *arguments: str, **variables: str) -> Told:
        """Call a stage, which the engine takes the place of."""
        done = self.call(*(arguments or ("stages.search",)), **variables)
        assert done.returncode == 7, done.stderr
        written = self.folder / "told.json"
        told = Told(**json.loads(written.read_text()))
        written.unlink()
        return told

    def refuse(self, *arguments: str, **variables: str) -> str:
        """Call a stage that is not handed over; what it says."""
        done = self.call(*(arguments or ("stages.search",)), **variables)
        assert done.returncode == 1, done.stderr
        assert not (self.folder / "told.json").exists()
        return done.stderr


@dataclass(frozen=True)
class Told:
    """What an engine was called with."""

    argv: list[str]
    environment: dict[str, str]

    def options(self, name: str) -> list[str]:
        """Every value of one of its options."""
        return [value for word, value in pairwise(self.argv) if word == name]

    @property
    def volumes(self) -> dict[str, str]:
        """Path, the same inside as outside → rw or ro; those that others lie in come first."""
        volumes = [volume.split(":") for volume in self.options("--volume")]
        assert all(outside == inside for outside, inside, _ in volumes)
        return {outside: mode for outside, _, mode in volumes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work" / ".dvc").mkdir(parents=True)
    write_tiny_params(tmp_path / "work" / "params.yaml")
    return tmp_path


@pytest.fixture
def docker(folder: Path) -> Engine:
    return Engine(folder).install()


@pytest.fixture
def apptainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    (folder / "image.sif").write_bytes(b"an image")
    monkeypatch.setenv("BIOTUNE_IMAGE", str(folder / "image.sif"))
    return Engine(folder, "apptainer").install()


@pytest.fixture
def far(folder: Path) -> Path:
    """A folder that is not in the checkout."""
    (folder / "far").mkdir()
    return folder / "far"


def test_the_engine_takes_the_stages_place_with_its_arguments(docker: Engine) -> None:
    told = docker.hand_over("stages.search", "--prepared", "some/where")
    command = ["biotune-pipeline", "python", "-m", "stages.search", "--prepared", "some/where"]
    assert told.argv[-len(command) :] == command
    assert told.argv[1:3] == ["run", "--rm"]
    assert told.options("--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert told.options("--workdir") == [str(docker.folder / "work")]
    assert told.options("--network") == ["none"]
    assert int(told.options("--shm-size")[0]) > 2**28


def test_the_command_group_hands_over_as_well(folder: Path) -> None:
    told = Engine(folder, "podman").install().hand_over("biotune", "export", "--dry-run")
    assert told.argv[-3:] == ["-m", "stages.export", "--dry-run"]


def test_help_and_wrong_options_need_no_container(folder: Path) -> None:
    assert Engine(folder).call("stages.search", "--help").returncode == 0
    done = Engine(folder).call("stages.search", "--nonsense")
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_it_gets_the_image_home_mlflows_variables_and_how_to_reach_a_network(
    docker: Engine,
) -> None:
    mlflow = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "MLFLOW_TRACKING_PASSWORD": "hidden"}
    others = {"HTTPS_PROXY": "x", "no_proxy": "x", "SSL_CERT_FILE": "x", "HF_TOKEN": "x"}
    told = docker.hand_over(**mlflow, **others, CUBLAS_WORKSPACE_CONFIG=":8", UNRELATED="x")
    assert told.environment["BIOTUNE_RUNTIME"] == "host"
    assert told.environment["BIOTUNE_IMAGE_DIGEST"] == "sha256:1234"
    names = set(told.options("--env"))
    assert {"BIOTUNE_RUNTIME", "BIOTUNE_HOME", "BIOTUNE_IMAGE_DIGEST", "PYTHONPATH"} <= names
    assert {*mlflow, *others, "CUBLAS_WORKSPACE_CONFIG"} <= names
    assert "UNRELATED" not in names
    assert not any("hidden" in word for word in told.argv)
    assert told.options("--network") == ["host"]


def test_an_image_of_a_registry_is_named_by_its_digest_there(folder: Path) -> None:
    digests = ["localhost/biotune@sha256:11", "example.org/biotune@sha256:22"]
    podman = Engine(folder, "podman").install(RepoDigests=digests)
    told = podman.hand_over(BIOTUNE_IMAGE="example.org/biotune")
    assert told.environment["BIOTUNE_IMAGE_DIGEST"] == "example.org/biotune@sha256:22"


def test_the_checkout_the_home_and_what_lies_elsewhere_are_seen(docker: Engine, far: Path) -> None:
    for name in ("images", "linked/cat", "out", "credentials"):
        (far / name).mkdir(parents=True)
    (far / "images" / "cat").symlink_to(far / "linked" / "cat")
    (far / "credentials" / "key.pem").touch()
    write_tiny_params(far / "other.yaml", prepare__path=str(far / "images"))
    told = docker.hand_over(
        *("stages.prepare", "--params", str(far / "other.yaml"), "--out", str(far / "out/new/it")),
        MLFLOW_TRACKING_URI=f"sqlite:///{far}/database/mlflow.db",
        MLFLOW_TRACKING_CLIENT_CERT_PATH=str(far / "credentials" / "key.pem"),
    )
    # The database's folder is not there yet, so the one above it, which all else lies in.
    paths = {str(path) for path in (docker.folder / "work", ROOT, docker.folder / "home", far)}
    assert paths <= {path for path, mode in told.volumes.items() if mode == "rw"}
    assert [path for path in told.volumes if path.startswith(str(far))] == [str(far)]
    assert told.options("--network") == ["none"]


def test_links_out_of_the_images_folder_are_followed(docker: Engine, far: Path) -> None:
    for name in ("images/bird", "elsewhere/dogs", "elsewhere/one/cat", "elsewhere/birds"):
        (far / name).mkdir(parents=True)
    (far / "elsewhere" / "one" / "cat" / "1.png").touch()
    (far / "elsewhere" / "birds" / "1.png").touch()
    (far / "images" / "dog").symlink_to(far / "elsewhere" / "dogs")
    (docker.folder / "work" / "data").symlink_to(far / "images")
    (far / "images" / "1.png").symlink_to(far / "elsewhere" / "one" / "cat" / "1.png")
    (far / "images" / "bird" / "1.png").symlink_to(far / "elsewhere" / "birds" / "1.png")
    (far / "images" / "bird" / "2.png").symlink_to(far / "nowhere" / "2.png")
    (far / "elsewhere" / "dogs" / "in" / "a").mkdir(parents=True)
    (far / "elsewhere" / "dogs" / "in" / "a" / "circle").symlink_to(far / "elsewhere" / "dogs")
    (far / "elsewhere" / "dogs" / "in" / "a" / "more").symlink_to(far / "elsewhere" / "more")
    (far / "elsewhere" / "more").mkdir()
    volumes = docker.hand_over("stages.prepare").volumes
    for name in (
        "images",
        "elsewhere/dogs",
        "elsewhere/one/cat",
        "elsewhere/birds",
        "elsewhere/more",
    ):
        assert str(far / name) in volumes
    assert str(far / "nowhere") not in volumes


@pytest.mark.parametrize("stage", ["prepare", "export", "search"])
def test_what_params_name_is_seen_by_the_stages_that_read_it(
    docker: Engine, far: Path, stage: str
) -> None:
    table = {"image_column": "image", "label_column": "label", "split_column": None}
    (far / "images").mkdir()
    for name in ("labels.csv", "weights.pt"):
        (far / name).touch()
    write_tiny_params(
        docker.folder / "work" / "params.yaml",
        prepare__path=str(far / "images"),
        prepare__table={"file": str(far / "labels.csv"), **table},
        model__weights=str(far / "weights.pt"),
    )
    volumes = docker.hand_over(f"stages.{stage}").volumes
    images = {str(far / "images"): "rw", str(far / "labels.csv"): "ro"}
    weights = {str(far / "weights.pt"): "ro"}
    assert {path: mode for path, mode in volumes.items() if path.startswith(str(far))} == (
        weights if stage == "search" else images | weights
    )


@pytest.mark.parametrize("content", ["prepare: [", "prepare: 3", "- a list"])
def test_params_that_are_none_are_for_the_stage_to_refuse(docker: Engine, content: str) -> None:
    (docker.folder / "work" / "params.yaml").write_text(content)
    docker.hand_over("stages.prepare")


def test_biotune_mounts_names_whatever_else_there_is(docker: Engine, far: Path) -> None:
    (far / "store").mkdir()
    (far / "notes").mkdir()
    (far / "link").symlink_to(far / "store")
    volumes = docker.hand_over(BIOTUNE_MOUNTS=f"{far}/link:{far}/notes").volumes
    assert {volumes[str(far / name)] for name in ("link", "store", "notes")} == {"ro"}
    said = docker.refuse(BIOTUNE_MOUNTS=f"{far}/notes:{far}/nowhere")
    assert f"BIOTUNE_MOUNTS names {far}/nowhere, which is not there" in said


def _inside(volumes: dict[str, str], looked_up: Path) -> Path:
    """Follow a path as a container does that sees these volumes alone; fails where it ends."""
    path = Path(os.path.abspath(looked_up))  # noqa: PTH100 - links stay
    for part in (*reversed(path.parents), path):
        around = any(part.is_relative_to(volume) for volume in volumes)
        # A mount's own point is what it leads to; a link inside of one is a link in there as well.
        if around and str(part) not in volumes and part.is_symlink():
            return _inside(volumes, part.parent / part.readlink() / path.relative_to(part))
    assert any(path.is_relative_to(volume) for volume in volumes), (
        f"{path} is not seen in {volumes}"
    )
    return path


def test_links_lead_where_they_lead_on_the_host(docker: Engine, far: Path) -> None:
    work, over = docker.folder / "work", docker.folder / "over"
    for name in ("home", "art", "hop/images/dog", "deep/cat", "deeper", "data"):
        (far / name).mkdir(parents=True)
    (far / "deeper" / "1.png").touch()
    (work / ".biotune").symlink_to(far / "home")
    over.symlink_to(far)
    (work / "art").symlink_to(over / "art")
    (work / "data").symlink_to(far / "data")
    (far / "data" / "dog").symlink_to(over / "hop" / "images" / "dog")
    (far / "data" / "cat").symlink_to("../deep/cat")
    (far / "deep" / "cat" / "1.png").symlink_to(over / "deeper" / "1.png")
    told = docker.hand_over("stages.prepare", "--out", "art/prepared", BIOTUNE_HOME="")
    for name in (".biotune", "art", "data/dog", "data/cat", "data/cat/1.png"):
        assert _inside(told.volumes, work / name).resolve() == (work / name).resolve()
    assert told.volumes[str(far / "home")] == told.volumes[str(far / "art")] == "rw"
    assert told.volumes[str(far / "deeper")] == told.volumes[str(far / "deep" / "cat")] == "ro"


def test_credentials_are_read_only_and_system_folders_its_own(docker: Engine, far: Path) -> None:
    for name in ("torch", "certificates", "tracking"):
        (far / name).mkdir(parents=True)
    (far / "key.json").touch()
    volumes = docker.hand_over(
        TORCH_HOME=str(far / "torch"),
        GOOGLE_APPLICATION_CREDENTIALS=str(far / "key.json"),
        REQUESTS_CA_BUNDLE=str(far / "certificates"),
        MLFLOW_TRACKING_URI=str(far / "tracking"),
        CUDA_HOME="/usr/local",
        NVIDIA_LIBRARIES="/usr/lib",
        CUDA_BINARIES="/usr/share",
    ).volumes
    assert volumes[str(far / "torch")] == volumes[str(far / "tracking")] == "rw"
    assert volumes[str(far / "key.json")] == volumes[str(far / "certificates")] == "ro"
    assert not any(path.startswith("/usr") for path in volumes)


def test_a_model_elsewhere_comes_with_its_description(docker: Engine) -> None:
    weights = docker.folder / "model.v2.safetensors"
    for file in (weights, weights.with_suffix(".json")):
        file.touch()
    volumes = docker.hand_over("stages.export", "--model", str(weights)).volumes
    assert volumes[str(weights)] == volumes[str(weights.with_suffix(".json"))] == "ro"


def test_what_is_written_inside_of_what_is_read_can_be_written(docker: Engine, far: Path) -> None:
    (far / "results").mkdir(parents=True)
    (docker.folder / "work" / "data").mkdir()
    (docker.folder / "work" / "data" / "cat").symlink_to(far)
    uri = f"sqlite:///{far}/results/mlflow.db"
    volumes = docker.hand_over("stages.prepare", MLFLOW_TRACKING_URI=uri).volumes
    assert (volumes[str(far)], volumes[str(far / "results")]) == ("ro", "rw")
    assert list(volumes).index(str(far)) < list(volumes).index(str(far / "results"))


@pytest.mark.parametrize(
    ("option", "path", "refused"),
    [("--best-plan", "/plan.json", "/"), ("--prepared", "/usr/lib", "/usr/lib")],
)
def test_what_would_cover_the_containers_own_files_is_refused(
    docker: Engine, option: str, path: str, refused: str
) -> None:
    said = docker.refuse("stages.search", option, path)
    assert f"Error: {refused} would have to be mounted" in said


@pytest.mark.parametrize(("engine", "character"), [("docker", ":"), ("apptainer", ",")])
def test_a_path_that_no_engine_takes_is_named(
    request: pytest.FixtureRequest, engine: str, character: str
) -> None:
    installed: Engine = request.getfixturevalue(engine)
    home = str(installed.folder / f"a{character}b")
    assert f"{home} cannot be mounted" in installed.refuse(BIOTUNE_HOME=home)


def test_more_arguments_may_name_another_network(docker: Engine) -> None:
    argv = docker.hand_over(BIOTUNE_RUNTIME_ARGS="--network=mine --label 'two words'").argv
    assert "--network" not in argv
    assert argv[argv.index("--network=mine") :][:3] == ["--network=mine", "--label", "two words"]


def test_more_arguments_with_an_open_quote_are_named(docker: Engine) -> None:
    said = docker.refuse(BIOTUNE_RUNTIME_ARGS="--label 'a")
    assert "BIOTUNE_RUNTIME_ARGS is no list of words: No closing quotation" in said


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
def test_the_network_is_there_for_a_server_alone(docker: Engine, uri: str, network: str) -> None:
    assert docker.hand_over(MLFLOW_TRACKING_URI=uri).options("--network") == [network]


@pytest.mark.parametrize(
    ("security", "user", "namespaces"),
    [("rootless", "0:0", []), ("userns", f"{os.getuid()}:{os.getgid()}", ["host"])],
    ids=["without root the caller is root", "it maps users to others"],
)
def test_files_are_the_callers_whatever_docker_calls_its_users(
    docker: Engine, security: str, user: str, namespaces: list[str]
) -> None:
    docker.install(info=f"[name=seccomp name={security}]")
    told = docker.hand_over()
    assert (told.options("--user"), told.options("--userns")) == ([user], namespaces)


def test_an_engine_that_does_not_answer_is_not_said_to_have_no_image(docker: Engine) -> None:
    script = docker.folder / "bin" / "docker"
    script.write_text("#!/bin/sh\necho Cannot connect to the Docker daemon. >&2; exit 1\n")
    said = docker.refuse()
    assert "docker does not answer (Cannot connect to the Docker daemon.)" in said
    assert "make images" not in said
    script.write_text("#!/bin/sh\ntest $1 = version || { echo No such image >&2; exit 1; }\n")
    assert "docker has no image biotune-pipeline (No such image)" in docker.refuse()


def test_apptainer_gets_its_variables_its_own_way(apptainer: Engine) -> None:
    image = str(apptainer.folder / "image.sif")
    told = apptainer.hand_over()
    assert told.argv[1:4] == ["exec", "--cleanenv", "--no-home"]
    assert told.argv[-4:] == [image, "python", "-m", "stages.search"]
    assert told.argv[told.argv.index("--net") :][:3] == ["--net", "--network", "none"]
    assert f"{ROOT}:{ROOT}:rw" in told.options("--bind")
    digest = hashlib.sha256(b"an image").hexdigest()
    assert told.environment["APPTAINERENV_BIOTUNE_IMAGE_DIGEST"] == f"sha256:{digest}"
    # HOME is the caller's there, whose folder is not.
    for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
        cache = told.environment[f"APPTAINERENV_{name}"]
        assert cache.startswith(str(apptainer.folder / "home"))


@pytest.mark.parametrize(
    "users_arguments", ["--network=host --nv", "--network host --nv", "--net host --nv"]
)
def test_apptainer_is_not_told_of_the_hosts_network(
    apptainer: Engine, users_arguments: str
) -> None:
    argv = apptainer.hand_over(BIOTUNE_RUNTIME_ARGS=users_arguments).argv
    assert not [word for word in argv if word.startswith("--net") or word == "host"]
    assert "--nv" in argv


@pytest.mark.parametrize(
    ("visible", "users_arguments", "all_of_them"),
    [
        (None, [], True),
        ("1", ["--device", "/dev/fuse"], True),
        ("", [], False),
        (None, ["--gpus=device=1"], False),
        (None, ["--device", "nvidia.com/gpu=1"], False),
    ],
)
def test_gpus_can_be_switched_off_and_chosen(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    users_arguments: list[str],
    all_of_them: bool,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gives_gpus(users_arguments, ["/dev/null"]) == all_of_them
    assert not gives_gpus(users_arguments, ["/dev/no-such-device"])


@pytest.mark.parametrize("name", ["docker", "podman"])
@pytest.mark.parametrize("labels", [{}, {"biotune.lock.sha256": "0123456789abcdef"}])
def test_an_image_of_another_lock_file_is_refused(
    folder: Path, name: str, labels: dict[str, str]
) -> None:
    said = Engine(folder, name).install(labels).refuse()
    for word in ("biotune-pipeline", "requirements.lock", LOCK[:12], f"make images ENGINE={name}"):
        assert word in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "dokcer",
            "BIOTUNE_RUNTIME is 'dokcer'; it must be one of host, docker, podman, apptainer",
        ),
        ("podman", "there is no podman on the PATH"),
    ],
)
def test_an_engine_that_is_not_there_is_named(folder: Path, name: str, said: str) -> None:
    assert said in Engine(folder, name).refuse(PATH=str(folder))
