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
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pipeline.containers.engines import Call, apptainer_argv, engine_argv
from pipeline.containers.images import CHECKOUT, Image, check_lock, find_image
from pipeline.containers.mounts import stage_mounts
from pipeline.errors import PipelineError
from pipeline.home import IMAGE_VARIABLE, biotune_home

RUNTIMES: Final = ("host", "docker", "podman", "apptainer")
"""What ``BIOTUNE_RUNTIME`` may be."""

GPU_DEVICES: Final = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where NVIDIA's driver is: on Linux, in WSL."""

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


def named_runtime() -> str:
    """What ``BIOTUNE_RUNTIME`` says; ``host`` if nothing.

    Raises:
        ValueError: for what is no runtime.
    """
    runtime = os.environ.get("BIOTUNE_RUNTIME") or "host"
    if runtime not in RUNTIMES:
        raise ValueError(f"BIOTUNE_RUNTIME is {runtime!r}; it must be one of {', '.join(RUNTIMES)}")
    return runtime


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
    users_arguments = _users_arguments()
    environment = _environment(image, runtime)
    call = Call(
        command=["python", "-m", f"stages.{stage}", *arguments],
        mounts=stage_mounts(CHECKOUT, reads, writes, environment, stage in _READ_IMAGES),
        environment=environment,
        network=_names_a_server(os.environ.get("MLFLOW_TRACKING_URI", "")),
        gpus=gives_gpus(users_arguments),
        users_arguments=users_arguments,
    )
    if runtime == "apptainer":
        argv = apptainer_argv(call, image)
        environment = {f"APPTAINERENV_{name}": value for name, value in environment.items()}
    else:
        argv = engine_argv(runtime, call, image)
    sys.stdout.flush()
    # A shell would stand between us and the signals.
    os.execvpe(argv[0], argv, os.environ | environment)  # noqa: S606


def gives_gpus(users_arguments: Sequence[str], devices: Iterable[str] = GPU_DEVICES) -> bool:
    """Whether a stage gets all GPUs: not if it is to see none, or the user says which.

    Args:
        users_arguments: for the engine.
        devices: files, one of which is there if there are any.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if any(word.startswith("--gpus") or "nvidia.com/gpu" in word for word in users_arguments):
        return False
    return any(Path(device).exists() for device in devices)


def _users_arguments() -> list[str]:
    try:
        return shlex.split(os.environ.get("BIOTUNE_RUNTIME_ARGS", ""))
    except ValueError as error:
        raise ValueError(f"BIOTUNE_RUNTIME_ARGS is no list of words: {error}") from error


def _environment(image: Image, runtime: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_IN)}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = biotune_home()
    if runtime == "apptainer":  # whose HOME is the caller's, which is not there
        for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
            environment[name] = str(home / "cache" / name.lower())
    return environment | {
        "BIOTUNE_RUNTIME": "host",
        "BIOTUNE_HOME": str(home),
        IMAGE_VARIABLE: image.digest,
        "PYTHONPATH": str(CHECKOUT),
        "TORCH_HOME": os.environ.get("TORCH_HOME") or str(cache / "torch"),
        "HF_HOME": os.environ.get("HF_HOME") or str(cache / "huggingface"),
    }


def _names_a_server(tracking_uri: str) -> bool:
    """Not a file, a folder, or a word: those need no network."""
    if tracking_uri.startswith("databricks"):
        return True
    return "://" in tracking_uri and not tracking_uri.startswith(("sqlite:", "file:"))
