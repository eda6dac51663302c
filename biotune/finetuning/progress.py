"""How far a training run has come, on disk after every epoch, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from biotune.files import put_file, scratch_beside

log = logging.getLogger(__name__)

_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_NOTES: Final = "notes"


@dataclass(frozen=True)
class Progress:
    """The state of a run between two epochs.

    Attributes:
        tensors: by name; those of one kind share a prefix.
        notes: the rest, as JSON values.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


class ProgressFile:
    """One run's progress, in a file that is replaced whole: safetensors, then their SHA-256.

    Args:
        path: of the file. Its folder is made when it is first written.
        run: whatever tells this run from any other, such as the evaluation store's key of it. A
            file of another run is not read.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run

    def read(self) -> Progress | None:
        """What :meth:`write` wrote last; None where there is nothing, or nothing usable."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        payload, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        try:
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("its checksum differs")
            tensors = load(payload)
            # safetensors' own metadata are not given back when bytes are read.
            notes = json.loads(bytes(tensors.pop(_NOTES).tolist()))
            if notes.pop("run") != self.run:
                raise ValueError("it is of another run")
        except (SafetensorError, ValueError, KeyError) as error:
            log.warning("%s is not used (%s): that run starts anew", self.path, error)
            return None
        return Progress(tensors, notes)

    def write(self, progress: Progress) -> None:
        """Replace the file; what was there stays if this fails or is killed.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        import torch

        text = json.dumps({**progress.notes, "run": self.run}).encode()
        notes = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        payload = save(
            {n: t.contiguous().cpu() for n, t in progress.tensors.items()} | {_NOTES: notes}
        )
        try:
            # A folder of its own: another process may be at the same run, and gets the same bits.
            with scratch_beside(self.path) as scratch:
                with (scratch / self.path.name).open("wb") as stream:
                    stream.write(payload)
                    stream.write(hashlib.sha256(payload).digest())
                put_file(scratch / self.path.name, self.path)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: free space there and run again, to go on from the epoch before",
                str(self.path),
            ) from error

    def remove(self) -> None:
        """Remove the file: the run's result is kept elsewhere."""
        self.path.unlink(missing_ok=True)
