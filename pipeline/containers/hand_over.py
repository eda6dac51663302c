"""A stage in a container of its own, where ``BIOTUNE_RUNTIME`` names an engine.

The container brings the environment, and the checkout the code, so that the stage runs just what
DVC has hashed. Every path is the same inside as outside: what is absolute in params, in MLflow's
database or in DVC's links stays true. The engine takes this process's place, so that its signals
and its exit code are the stage's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.containers.images import CHECKOUT, Image, check_lock, find_image
from pipeline.containers.mounts import Mounts, stage_mounts
from pipeline.errors import PipelineError
from pipeline.home import IMAGE_VARIABLE, biotune_home

RUNTIMES: Final = ("host", "docker", "podman", "apptainer")
"""What ``BIOTUNE_RUNTIME`` may be."""

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
class Call:
    """What is to run inside.

    Attributes:
        command: the stage's.
        mounts: what it sees of this machine.
        environment: its variables, beside the image's own.
        network: whether it may reach any.
        gpus: whether it gets them.
        more: arguments of the user's for the engine.
    """

    command: Sequence[str]
    mounts: Mounts
    environment: Mapping[str, str]
    network: bool
    gpus: bool
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
    more = _more_arguments()
    environment = _environment(image, runtime)
    call = Call(
        command=["python", "-m", f"stages.{stage}", *arguments],
        mounts=stage_mounts(CHECKOUT, reads, writes, environment, stage in _READ_IMAGES),
        environment=environment,
        network=_names_a_server(os.environ.get("MLFLOW_TRACKING_URI", "")),
        gpus=gives_gpus(more),
        more=more,
    )
    argv = (
        apptainer_argv(call, image) if runtime == "apptainer" else engine_argv(runtime, call, image)
    )
    sys.stdout.flush()
    known = {**os.environ, **_for_the_engine(runtime, environment)}
    os.execvpe(argv[0], argv, known)  # noqa: S606 - a shell would stand between us and the signals


def engine_argv(engine: str, call: Call, image: Image) -> list[str]:
    """The command that runs a stage by Docker or Podman."""
    # Without --tty, with which Docker's client passes no signals on, and stops in the background.
    argv = [engine, "run", "--rm", *_user(engine), "--workdir", str(Path.cwd())]
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
    argv += _volumes("--volume", call.mounts, ":")
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
    argv += _volumes("--bind", call.mounts, ":,")
    return [*argv, *_without_host_network(call.more), image.name, *call.command]


def _volumes(option: str, mounts: Mounts, separators: str) -> list[str]:
    words = []
    for path, mode in mounts.items():
        if any(one in str(path) for one in separators):
            raise ValueError(
                f"{path} cannot be mounted into the stage's container: an engine takes none of "
                f"{' '.join(separators)} in a path; rename it, or run with BIOTUNE_RUNTIME=host"
            )
        words += [option, f"{path}:{path}:{mode}"]
    return words


def _more_arguments() -> list[str]:
    """The user's for the engine."""
    try:
        return shlex.split(os.environ.get("BIOTUNE_RUNTIME_ARGS", ""))
    except ValueError as error:
        raise ValueError(f"BIOTUNE_RUNTIME_ARGS is no list of words: {error}") from error


def _without_host_network(words: Sequence[str]) -> list[str]:
    """Apptainer has the host's network by itself; to name it takes rights that few users have."""
    kept: list[str] = []
    for word in words:
        if word == "host" and kept and kept[-1] in ("--network", "--net"):
            kept.pop()
        elif word not in ("--network=host", "--net=host"):
            kept.append(word)
    return kept


def _environment(image: Image, runtime: str) -> dict[str, str]:
    named = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_IN)}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = biotune_home()
    caches = {}
    if runtime == "apptainer":  # whose HOME is the caller's, which is not there
        names = ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")
        caches = {name: str(home / "cache" / name.lower()) for name in names}
    return {
        **named,
        **caches,
        "BIOTUNE_RUNTIME": "host",
        "BIOTUNE_HOME": str(home),
        IMAGE_VARIABLE: image.digest,
        "PYTHONPATH": str(CHECKOUT),
        "TORCH_HOME": os.environ.get("TORCH_HOME") or str(cache / "torch"),
        "HF_HOME": os.environ.get("HF_HOME") or str(cache / "huggingface"),
    }


def _for_the_engine(runtime: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which an engine is told those of the container."""
    prefix = "APPTAINERENV_" if runtime == "apptainer" else ""
    return {f"{prefix}{name}": value for name, value in environment.items()}


def gives_gpus(more: Sequence[str]) -> bool:
    """Whether a stage gets all GPUs: not if it is to see none, or the user says which."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if any(word.startswith("--gpus") or "nvidia.com/gpu" in word for word in more):
        return False
    return any(Path(device).exists() for device in _GPU_DEVICES)


def _name_a_network(words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in ("--network", "--net") for word in words)


def _names_a_server(tracking_uri: str) -> bool:
    """Not a file, a folder, or a word: those need no network."""
    if tracking_uri.startswith("databricks"):
        return True
    return "://" in tracking_uri and not tracking_uri.startswith(("sqlite:", "file:"))


def _user(engine: str) -> list[str]:
    """The caller, so that files are the caller's. Docker without root calls the caller root."""
    caller = ["--user", f"{os.getuid()}:{os.getgid()}"]
    if engine == "podman" and os.getuid() != 0:
        return [*caller, "--userns", "keep-id"]
    if engine == "docker":
        asked = subprocess.run(
            ["docker", "info", "--format", "{{.SecurityOptions}}"], capture_output=True, text=True
        )
        if "name=rootless" in asked.stdout:
            return ["--user", "0:0"]
        if "name=userns" in asked.stdout:  # all ids are others there, and --pid host is refused
            return [*caller, "--userns", "host"]
    return caller
