"""Podman with images and settings of its own, and the project's images built by it.

All that can be used again, by this checkout or another, is kept in a cache folder: the packages,
Debian's base system, and the images' layers. What they are made from decides whether they are.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.imports import ROOT

SUITES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Python → the Debian that has it: the packages in the image are those of this Python."""

NEEDED: Final = ("podman", "runc", "mmdebstrap")


def why_not() -> str | None:
    """What these tests lack here; None if nothing."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install {' '.join(NEEDED)}"
    if os.getuid() != 0:
        return "the base image is made by mmdebstrap, as root"
    if sys.version_info[:2] not in SUITES:
        return f"no Debian has Python {sys.version_info[0]}.{sys.version_info[1]}"
    return None


@dataclass(frozen=True)
class Engine:
    """Podman, told where everything is by ``environment``."""

    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any process finds the images."""
        return {
            "CONTAINERS_STORAGE_CONF": str(self.cache / "storage.conf"),
            "CONTAINERS_CONF": str(self.cache / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }

    @property
    def base(self) -> str:
        """The image that the others are built on."""
        return f"localhost/biotune-test-base:{SUITES[sys.version_info[:2]]}"

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``podman`` with these words."""
        done = self.call("podman", *command)
        assert not (check and done.returncode), f"{command}:\n{done.stdout}\n{done.stderr}"
        return done

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Any command, with podman's settings, in the checkout."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )

    def inspect(self, image: str) -> dict[str, Any]:
        """What podman knows of an image."""
        description: dict[str, Any] = json.loads(self.run("image", "inspect", image).stdout)[0]
        return description

    def containers(self) -> list[str]:
        """The ids of all that there are, running or not."""
        return self.run("ps", "--all", "--quiet").stdout.split()

    def configure(self) -> None:
        """Write its settings: nothing of the machine's own engine is used or changed."""
        self.cache.mkdir(parents=True, exist_ok=True)
        (self.cache / "storage.conf").write_text(
            '[storage]\ndriver = "overlay"\n'
            f'graphroot = "{self.cache / "storage"}"\nrunroot = "{self.cache / "run"}"\n'
        )
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        (self.cache / "containers.conf").write_text(
            '[containers]\nnetns = "none"\n'
            # More than a machine that is a container itself may give would be refused.
            f'default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )

    def build(self) -> None:
        """Build both images, by the command that people use, without a connection."""
        self.run("rm", "--force", "--all")  # of a run that was killed
        base = self.base
        if self.run("image", "exists", base, check=False).returncode:
            self._import_base(base)
        words = [f"WHEELHOUSE={self.cache / 'wheelhouse'}", f"PYTHON={sys.executable}"]
        self._make("wheelhouse", *words)
        self._make("images", *words, "ENGINE=podman", f"BASE_IMAGE={base}", "BUILD_ARGS=--force-rm")
        self.run("image", "prune", "--force", "--filter", "until=72h")

    def _make(self, *words: str) -> None:
        done = self.call("make", *words)
        assert done.returncode == 0, f"{words}:\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"

    def _import_base(self, name: str) -> None:
        """What a slim Python image has, from Debian's packages."""
        archive = self.cache / "base.tar"
        packages = "python3,python3-venv,python3-pip,ca-certificates"
        done = self.call(
            "mmdebstrap", "--variant=minbase", f"--include={packages}", name.partition(":")[2],
            str(archive),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.run("import", "--quiet", str(archive), name)
        archive.unlink()
