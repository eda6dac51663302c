"""A stage in a container of its own, where ``BIOTUNE_RUNTIME`` names an engine.

The container brings the environment, and the checkout the code, so that the stage runs just what
DVC has hashed. Every path is the same inside as outside: what is absolute in params, in MLflow's
database or in DVC's links stays true. The engine takes this process's place, so that its signals
and its exit code are the stage's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.errors import PipelineError
from pipeline.home import biotune_home
from pipeline.lineage import IMAGE_VARIABLE
from pipeline.mounts import Mounts, stage_mounts

RUNTIMES: Final = ("host", "docker", "podman", "apptainer")
"""What ``BIOTUNE_RUNTIME`` may be."""

LOCK_LABEL: Final = "biotune.lock.sha256"
"""Label of an image: SHA-256 of the ``requirements.lock`` that it was built from."""

CHECKOUT: Final = Path(__file__).resolve().parents[1]

_HANDED_IN: Final = (
    *("BIOTUNE_", "MLFLOW_", "CUDA_", "CUBLAS_", "NVIDIA_", "OMP_", "MKL_", "OPENBLAS_"),
    *("PYTORCH_", "TORCH", "HF_TOKEN", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS"),  # where MLflow keeps artifacts
    *("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"),
)
"""How the names of the variables begin that a stage is handed."""

_READ_IMAGES: Final = ("prepare", "export")
"""The stages that read images, and not only what the first of them has made of those."""

_GPU_DEVICES: Final = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where NVIDIA's driver is: on Linux, in WSL."""


@dataclass(frozen=True)
class Image:
    """What an engine says of an image.

    Attributes:
        name: as given.
        digest: of its content; with the registry's name, where it came from one.
        labels: that it was built with.
    """

    name: str
    digest: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Call:
    """What is to run inside.

    Attributes:
        command: the stage's.
        mounts: what it sees of this machine.
        environment: its variables, beside the image's own.
        network: whether it may reach any.
        gpus: whether it gets them.
        terminal: whether a person sits at it.
        more: arguments of the user's for the engine.
    """

    command: Sequence[str]
    mounts: Mounts
    environment: Mapping[str, str]
    network: bool
    gpus: bool
    terminal: bool = False
    more: Sequence[str] = field(default=())


def named_runtime() -> str:
    """What ``BIOTUNE_RUNTIME`` says; ``host`` if nothing.

    Raises:
        ValueError: for what is no runtime.
    """
    named = os.environ.get("BIOTUNE_RUNTIME") or "host"
    if named not in RUNTIMES:
        raise ValueError(f"BIOTUNE_RUNTIME is {named!r}; it must be one of {', '.join(RUNTIMES)}")
    return named


def hand_over(
    stage: str, arguments: Sequence[str], reads: Iterable[Path], writes: Iterable[Path]
) -> None:
    """Go on in a container, if ``BIOTUNE_RUNTIME`` names an engine: then this does not return.

    Args:
        stage: name of the module in ``stages``.
        arguments: of its command.
        reads: paths among them that are read.
        writes: paths among them that are written.

    Raises:
        ValueError: for what is no runtime, or a path that cannot be mounted.
        PipelineError: if the engine or the image is missing, or the image is of another lock file.
    """
    runtime = named_runtime()
    if runtime == "host":
        return
    if shutil.which(runtime) is None:
        raise PipelineError(
            f"BIOTUNE_RUNTIME is {runtime}, but there is no {runtime} on the PATH: install it, or "
            "run with BIOTUNE_RUNTIME=host"
        )
    image = find_image(runtime)
    check_lock(image, runtime)
    more = shlex.split(os.environ.get("BIOTUNE_RUNTIME_ARGS", ""))
    environment = _environment(image)
    call = Call(
        command=["python", "-m", f"stages.{stage}", *arguments],
        mounts=stage_mounts(CHECKOUT, reads, writes, environment, stage in _READ_IMAGES),
        environment=environment,
        network=_names_a_server(os.environ.get("MLFLOW_TRACKING_URI", "")),
        gpus=any(Path(device).exists() for device in _GPU_DEVICES),
        terminal=sys.stdin.isatty() and sys.stdout.isatty(),
        more=more,
    )
    argv = (
        apptainer_argv(call, image) if runtime == "apptainer" else engine_argv(runtime, call, image)
    )
    sys.stdout.flush()
    known = {**os.environ, **_for_the_engine(runtime, environment)}
    os.execvpe(argv[0], argv, known)  # noqa: S606 - a shell would stand between us and the signals


def find_image(runtime: str) -> Image:
    """The image that ``BIOTUNE_IMAGE`` names, by default what ``make images`` has built.

    Raises:
        PipelineError: if there is none.
    """
    if runtime == "apptainer":
        return _find_sif(Path(os.environ.get("BIOTUNE_IMAGE") or CHECKOUT / "biotune-pipeline.sif"))
    name = os.environ.get("BIOTUNE_IMAGE") or "biotune-pipeline"
    asked = subprocess.run([runtime, "image", "inspect", name], capture_output=True, text=True)
    if asked.returncode:
        raise PipelineError(
            f"{runtime} has no image {name} ({asked.stderr.strip()}): build it with `make images "
            f"ENGINE={runtime}`, or name another as BIOTUNE_IMAGE"
        )
    found: dict[str, Any] = json.loads(asked.stdout)[0]
    # An image that was only ever here has no digest of a registry; its id is one of its content.
    digests = [one for one in found.get("RepoDigests") or () if not one.startswith("localhost/")]
    digest = digests[0] if digests else f"sha256:{found['Id'].removeprefix('sha256:')}"
    return Image(name, digest, found["Config"].get("Labels") or {})


def _find_sif(file: Path) -> Image:
    if not file.is_file():
        raise PipelineError(
            f"there is no image {file}: docs/deployment.md says how to make one for apptainer, or "
            "name another as BIOTUNE_IMAGE"
        )
    asked = subprocess.run(
        ["apptainer", "inspect", "--json", "--labels", str(file)], capture_output=True, text=True
    )
    if asked.returncode:
        raise PipelineError(f"apptainer cannot read the image {file}: {asked.stderr.strip()}")
    labels = json.loads(asked.stdout)["data"]["attributes"]["labels"]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Image(str(file.resolve()), f"sha256:{digest}", labels or {})


def check_lock(image: Image, runtime: str) -> None:
    """Make sure that an image holds what the checkout's lock file says.

    Raises:
        PipelineError: if it was built from another, with the command that builds it anew.
    """
    expected = hashlib.sha256((CHECKOUT / "requirements.lock").read_bytes()).hexdigest()
    found = image.labels.get(LOCK_LABEL, "")
    if found != expected:
        engine = "docker" if runtime == "apptainer" else runtime
        raise PipelineError(
            f"the image {image.name} was built from another requirements.lock (its label "
            f"{LOCK_LABEL} is {found[:12] or 'missing'}) than the checkout's ({expected[:12]}): "
            f"build it again with `make images ENGINE={engine}`"
        )


def engine_argv(engine: str, call: Call, image: Image) -> list[str]:
    """The command that runs a stage by Docker or Podman."""
    argv = [engine, "run", "--rm", "--user", _user(engine), "--workdir", str(Path.cwd())]
    if engine == "podman" and os.getuid() != 0:
        argv += ["--userns", "keep-id"]
    # As the first process of a namespace of its own, the stage would not be ended by a signal that
    # comes before it has a handler for it.
    argv += ["--pid", "host"]
    # Not to relabel the user's files for SELinux, which is what lets a container see them else.
    argv += ["--security-opt", "label=disable"]
    argv += ["--shm-size", str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)]
    if not _name_a_network(call.more):
        argv += ["--network", "host" if call.network else "none"]
    if call.gpus:
        argv += ["--gpus", "all"] if engine == "docker" else ["--device", "nvidia.com/gpu=all"]
    if call.terminal:
        argv += ["--interactive", "--tty"]
    for path, mode in call.mounts.items():
        argv += ["--volume", f"{path}:{path}:{mode}"]
    for name in sorted(call.environment):  # values from our own: a password is not for `ps` to show
        argv += ["--env", name]
    return [*argv, *call.more, "--entrypoint", "", image.name, *call.command]


def apptainer_argv(call: Call, image: Image) -> list[str]:
    """The command that runs a stage by Apptainer, where user, pids and /dev/shm are the host's."""
    argv = ["apptainer", "exec", "--cleanenv", "--no-home", "--pwd", str(Path.cwd())]
    if not (call.network or _name_a_network(call.more)):
        argv += ["--net", "--network", "none"]
    if call.gpus:
        argv += ["--nv"]
    for path, mode in call.mounts.items():
        argv += ["--bind", f"{path}:{path}:{mode}"]
    return [*argv, *call.more, image.name, *call.command]


def _environment(image: Image) -> dict[str, str]:
    named = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_IN)}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return named | {
        "BIOTUNE_RUNTIME": "host",
        "BIOTUNE_HOME": str(biotune_home()),
        IMAGE_VARIABLE: image.digest,
        "PYTHONPATH": str(CHECKOUT),
        "TORCH_HOME": os.environ.get("TORCH_HOME") or str(cache / "torch"),
        "HF_HOME": os.environ.get("HF_HOME") or str(cache / "huggingface"),
    }


def _for_the_engine(runtime: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which an engine is told those of the container."""
    prefix = "APPTAINERENV_" if runtime == "apptainer" else ""
    return {f"{prefix}{name}": value for name, value in environment.items()}


def _name_a_network(words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in ("--network", "--net") for word in words)


def _names_a_server(tracking_uri: str) -> bool:
    return bool(tracking_uri) and not tracking_uri.startswith(("sqlite:", "file:"))


def _user(engine: str) -> str:
    """The caller, so that files are the caller's. Docker without root calls the caller root."""
    if engine == "docker":
        asked = subprocess.run(
            ["docker", "info", "--format", "{{.SecurityOptions}}"], capture_output=True, text=True
        )
        if "name=rootless" in asked.stdout:
            return "0:0"
    return f"{os.getuid()}:{os.getgid()}"
