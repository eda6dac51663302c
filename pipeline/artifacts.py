"""Where stages write their files, and how: beside, then renamed, so that none is half-written."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from biotune.files import put_file, put_folder, scratch_beside
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Files:
    """The paths that ``dvc.yaml`` says, each once; attributes are its names.

    Attributes:
        model, baseline: without the ending.
    """

    image_list: Path
    weights_list: Path
    prepared: Path
    best_plan: Path
    evaluations: Path
    confirmations: Path
    search_metrics: Path
    model: Path
    baseline: Path
    seeds: Path
    curves: Path
    finetune_metrics: Path
    metrics: Path
    predictions: Path
    confusion: Path
    classes: Path
    bundle: Path
    export_metrics: Path
    lineage: Path = Path("artifacts/lineage.json")
    """No output of DVC's: it says when and where, which is no function of the inputs."""

    @property
    def model_weights(self) -> Path:
        """The winner; what it is, is in the ``.json`` beside it."""
        return Path(f"{self.model}.safetensors")

    @property
    def baseline_weights(self) -> Path:
        """The best recipe; likewise."""
        return Path(f"{self.baseline}.safetensors")


def files_of(dvc_yaml: Path) -> Files:
    """The paths that a ``dvc.yaml`` names below ``files:``.

    Raises:
        PipelineError: if one of them is missing.
    """
    # By the standard library, because `biotune --help` shows them wherever the checkout is used.
    text = dvc_yaml.read_text(encoding="utf-8")
    block = re.search(r"^ *- files:\n((?: +\w+: \S+\n)+)", text, re.MULTILINE)
    named = dict(line.strip().split(": ", 1) for line in block[1].splitlines()) if block else {}
    wanted = {field.name for field in fields(Files)} - {"lineage"}
    if missing := sorted(wanted - named.keys()):
        raise PipelineError(
            f"{dvc_yaml}: `files:` below `vars:` does not say where {', '.join(missing)} are: "
            "write `name: path` there, one on a line"
        )
    return Files(**{name: Path(named[name]) for name in wanted})


FILES: Final = files_of(Path(__file__).parents[1] / "dvc.yaml")
"""Of this checkout."""


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` at the end, or is removed.

    Folders on the way are made. The temporary file has the same name, in a folder beside ``path``.

    Raises:
        OSError: naming ``path``, if it cannot be written.
    """
    try:
        with scratch_beside(path) as scratch:
            yield scratch / path.name
            put_file(scratch / path.name, path)
    except OSError as error:
        _raise_if_full(error, path)
        raise


@contextmanager
def folder_written_beside(folder: Path, mark: str) -> Iterator[Path]:
    """A temporary folder beside ``folder`` to write to; it takes its place at the end, whole.

    Args:
        folder: its parents are made. One that is there is replaced if it is of the same kind.
        mark: a file that every folder of this kind holds.

    Raises:
        FileExistsError: if ``folder`` is something else.
        BlockingIOError: if another process is writing it.
        OSError: naming ``folder``, if it cannot be written.
    """
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / mark).is_file())
    ):
        raise FileExistsError(
            f"{folder} exists and holds something else ({mark} is not in it): choose another "
            "folder, or move it away"
        )
    try:
        with scratch_beside(folder, alone=True) as scratch:
            fresh = scratch / "new"
            fresh.mkdir()
            yield fresh
            put_folder(fresh, folder, scratch / "old")
    except OSError as error:
        _raise_if_full(error, folder)
        raise


def _raise_if_full(error: OSError, path: Path) -> None:
    if error.errno == errno.ENOSPC:
        raise OSError(
            error.errno, f"{path} cannot be written: the disk is full; free space and run again"
        ) from error


def check_writable(*paths: Path) -> None:
    """Make sure, before any long work, that files can be written where they are wanted.

    Raises:
        OSError: naming the first that can't.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{path} cannot be written: {path.parent}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole text file at once."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON; NaN is an error, because it is not JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows under these columns, None as an empty field."""
    write_text(path, csv_text(rows, columns))


def read_rows(path: Path, made_by: str) -> list[dict[str, str]]:
    """Read a CSV file that an earlier stage wrote, as its columns.

    Raises:
        ValueError: if the file is missing or damaged; ``made_by`` is the stage to run again.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}; run the {made_by} stage first") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({error}); run the {made_by} stage again to write it anew"
        ) from error
    return rows


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows under these columns, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """Read a file that an earlier stage wrote.

    Args:
        path: of the file.
        made_by: the stage, for the message when it is not there.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}; run the {made_by} stage first") from error
    except ValueError as error:  # not UTF-8, not JSON, or not an object
        raise ValueError(
            f"{path} is damaged ({error}); run the {made_by} stage again to write it anew"
        ) from error
    return content
