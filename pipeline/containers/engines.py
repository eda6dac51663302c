"""What Docker, Podman and Apptainer are told, so that a stage runs as it does on the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.containers.images import Image
from pipeline.containers.mounts import Mounts


@dataclass(frozen=True)
class Call:
    """What is to run inside.

    Attributes:
        command: the stage's.
        mounts: what it sees of this machine.
        environment: its variables, beside the image's own.
        network: whether it may reach any.
        gpus: whether it gets them.
        users_arguments: the user's for the engine.
    """

    command: Sequence[str]
    mounts: Mounts
    environment: Mapping[str, str]
    network: bool
    gpus: bool
    users_arguments: Sequence[str]

    @property
    def user_names_a_network(self) -> bool:
        """Whether the user's arguments do: then ours do not."""
        options = (word.partition("=")[0] for word in self.users_arguments)
        return any(option in ("--network", "--net") for option in options)


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
    if not call.user_names_a_network:
        argv += ["--network", "host" if call.network else "none"]
    if call.gpus:
        argv += ["--gpus", "all"] if engine == "docker" else ["--device", "nvidia.com/gpu=all"]
    argv += _volumes("--volume", call.mounts, ":")
    for name in sorted(call.environment):  # values from our own: a password is not for `ps` to show
        argv += ["--env", name]
    return [*argv, *call.users_arguments, "--entrypoint", "", image.name, *call.command]


def apptainer_argv(call: Call, image: Image) -> list[str]:
    """The command that runs a stage by Apptainer, where user, pids and /dev/shm are the host's."""
    argv = ["apptainer", "exec", "--cleanenv", "--no-home", "--pwd", str(Path.cwd())]
    if not (call.network or call.user_names_a_network):
        argv += ["--net", "--network", "none"]
    if call.gpus:
        argv += ["--nv"]
    argv += _volumes("--bind", call.mounts, ":,")
    return [*argv, *_without_host_network(call.users_arguments), image.name, *call.command]


def _volumes(option: str, mounts: Mounts, separators: str) -> list[str]:
    argv = []
    for path, mode in mounts.items():
        if any(separator in str(path) for separator in separators):
            raise ValueError(
                f"{path} cannot be mounted into the stage's container: an engine takes none of "
                f"{' '.join(separators)} in a path; rename it, or run with BIOTUNE_RUNTIME=host"
            )
        argv += [option, f"{path}:{path}:{mode}"]
    return argv


def _without_host_network(words: Sequence[str]) -> list[str]:
    """Apptainer has the host's network by itself; to name it takes rights that few users have."""
    kept: list[str] = []
    for word in words:
        if word == "host" and kept and kept[-1] in ("--network", "--net"):
            kept.pop()
        elif word not in ("--network=host", "--net=host"):
            kept.append(word)
    return kept


def _user(engine: str) -> list[str]:
    """The caller, so that files are the caller's. Docker without root calls the caller root."""
    caller = ["--user", f"{os.getuid()}:{os.getgid()}"]
    if engine == "podman":
        return caller if os.getuid() == 0 else [*caller, "--userns", "keep-id"]
    answer = subprocess.run(
        ["docker", "info", "--format", "{{.SecurityOptions}}"], capture_output=True, text=True
    )
    if "name=rootless" in answer.stdout:
        return ["--user", "0:0"]
    if "name=userns" in answer.stdout:  # all ids are others there, and --pid host is refused
        return [*caller, "--userns", "host"]
    return caller
