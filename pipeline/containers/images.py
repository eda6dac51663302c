"""The image that stages run in: which one, and whether it is of the checkout's lock file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import PipelineError

LOCK_LABEL: Final = "biotune.lock.sha256"
"""Label of an image: SHA-256 of the ``requirements.lock`` that it was built from."""

CHECKOUT: Final = Path(__file__).resolve().parents[2]


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


def find_image(runtime: str) -> Image:
    """The image that ``BIOTUNE_IMAGE`` names, by default what ``make images`` has built.

    Raises:
        PipelineError: if there is none.
    """
    if runtime == "apptainer":
        return _find_sif(Path(os.environ.get("BIOTUNE_IMAGE") or CHECKOUT / "biotune-pipeline.sif"))
    name = os.environ.get("BIOTUNE_IMAGE") or "biotune-pipeline"
    answer = subprocess.run([runtime, "image", "inspect", name], capture_output=True, text=True)
    if answer.returncode:
        version = subprocess.run([runtime, "version"], capture_output=True, text=True)
        if version.returncode:
            raise PipelineError(
                f"{runtime} does not answer ({version.stderr.strip()}): start it, or see to it "
                "that you may use it"
            )
        raise PipelineError(
            f"{runtime} has no image {name} ({answer.stderr.strip()}): build it with `make images "
            f"ENGINE={runtime}`, or name another as BIOTUNE_IMAGE"
        )
    inspected: dict[str, Any] = json.loads(answer.stdout)[0]
    # An image that was only ever here has no digest of a registry; its id is one of its content.
    digests = [str(digest) for digest in inspected.get("RepoDigests") or ()]
    pulled = [digest for digest in digests if not digest.startswith("localhost/")]
    digest = pulled[0] if pulled else f"sha256:{inspected['Id'].removeprefix('sha256:')}"
    return Image(name=name, digest=digest, labels=inspected["Config"].get("Labels") or {})


def _find_sif(file: Path) -> Image:
    if not file.is_file():
        raise PipelineError(
            f"there is no image {file}: docs/deployment.md says how to make one for apptainer, or "
            "name another as BIOTUNE_IMAGE"
        )
    answer = subprocess.run(
        ["apptainer", "inspect", "--json", "--labels", str(file)], capture_output=True, text=True
    )
    if answer.returncode:
        raise PipelineError(f"apptainer cannot read the image {file}: {answer.stderr.strip()}")
    labels = json.loads(answer.stdout)["data"]["attributes"]["labels"]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Image(name=str(file.resolve()), digest=f"sha256:{digest}", labels=labels or {})


def check_lock(image: Image, runtime: str) -> None:
    """Make sure that an image holds what the checkout's lock file says.

    Raises:
        PipelineError: if it was built from another, with the command that builds it anew.
    """
    expected = hashlib.sha256((CHECKOUT / "requirements.lock").read_bytes()).hexdigest()
    labelled = image.labels.get(LOCK_LABEL, "")
    if labelled != expected:
        engine = "docker" if runtime == "apptainer" else runtime
        raise PipelineError(
            f"the image {image.name} was built from another requirements.lock (its label "
            f"{LOCK_LABEL} is {labelled[:12] or 'missing'}) than the checkout's ({expected[:12]}): "
            f"build it again with `make images ENGINE={engine}`"
        )
