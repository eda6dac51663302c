"""The inputs stage: the content of the images, of their table and of a weights file, as two lists.

DVC would not see a table outside the images' folder, what is behind a linked folder, or another
file under the name of the weights; and it stops at a link to nothing. The stages that read these
depend on the lists in their place. They say the same on every machine that has the same files.

Runs on the host even if stages run in containers, beside DVC's record of what it has hashed: with
that, a file that is as it was costs no reading. So this imports nothing that DVC does not bring.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dvc.exceptions import DvcException, OutputNotFoundError
from dvc.repo import Repo
from dvc_data.hashfile.hash import hash_file
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from tqdm import tqdm

from biotune.files import visible_files
from pipeline.artifacts import write_csv
from pipeline.errors import PipelineError

FILE_SOURCES: Final = ("image_folder", "image_csv")
"""Sources of the user's files. Any other is what it is by its name: torchvision checks what it
downloads, and that may be after the list is made."""


@dataclass(frozen=True)
class Inputs:
    """What params name.

    Attributes:
        images: folder of the images; None for a source whose name says all.
        table: file of their labels, or None.
        weights: a state dict, unless it is the name of weights.
    """

    images: Path | None
    table: Path | None
    weights: Path


def run(params_file: Path, *, image_list: Path, weights_list: Path) -> None:
    """Write both lists.

    Files that a ``.dvc`` file is about are first treated as DVC treats what a stage depends on.

    Args:
        params_file: its ``prepare`` and ``model`` are used.
        image_list: CSV to write: ``path``, from ``prepare.path`` on, of every file that is not
            hidden, and ``md5`` of its content, empty for one that cannot be read. The table, if
            there is one, is ``prepare.table.file``.
        weights_list: the same of ``model.weights``; no row if that is no file.

    Raises:
        PipelineError: if the params cannot be read, or DVC cannot say what it has.
        OSError: if a folder cannot be read.
    """
    inputs = read_inputs(params_file)
    logging.getLogger("dvc").propagate = False  # it prints by itself what it has to say
    try:
        with Repo() as repo:
            _follow_dvc_files(repo, inputs)
            files = {}
            if inputs.images is not None and inputs.images.is_dir():  # else prepare says so
                folder = inputs.images
                files = {f.relative_to(folder).as_posix(): f for f in visible_files(folder)}
            if inputs.table is not None:
                files["prepare.table.file"] = inputs.table
            weights = {"model.weights": inputs.weights} if inputs.weights.is_file() else {}
            digests = _digests(repo, [*files.values(), *weights.values()])
        for path, listed in ((image_list, files), (weights_list, weights)):
            rows = [{"path": name, "md5": digests.get(listed[name], "")} for name in sorted(listed)]
            write_csv(path, rows, ("path", "md5"))
    except DvcException as error:
        raise PipelineError(f"DVC: {error}") from error
    except UnicodeEncodeError as error:  # DVC's record has names of files as text
        raise PipelineError(
            f"the file name {error.object!r} is not valid UTF-8: rename it"
        ) from error


def read_inputs(params_file: Path) -> Inputs:
    """The paths that a params file names, as they are: the stages check all the rest of it.

    Raises:
        PipelineError: if they cannot be read.
    """
    try:
        content = YAML(typ="safe", pure=True).load(params_file)
        section, weights = content["prepare"], Path(content["model"]["weights"])
        if section["source"] not in FILE_SOURCES:
            return Inputs(images=None, table=None, weights=weights)
        table = Path(section["table"]["file"]) if section["table"] is not None else None
        return Inputs(images=Path(section["path"]), table=table, weights=weights)
    except (OSError, UnicodeDecodeError, YAMLError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{params_file} does not say where images and weights are ({error!r}); "
            f"`biotune prepare --params {params_file} --dry-run` says what is wrong with it"
        ) from error


def _follow_dvc_files(repo: Repo, inputs: Inputs) -> None:
    """Bring what ``dvc add`` has noted and is missing here, and note anew what has changed.

    DVC does so with the dependencies of a stage, and ``--temp`` experiments need it: their copy of
    the checkout has just what the stages that are run depend on.
    """
    for path in filter(None, (inputs.images, inputs.table, inputs.weights)):
        with suppress(OutputNotFoundError):
            outs = repo.find_outs_by_path(str(path), recursive=True, strict=False)
            for stage in {out.stage for out in outs if out.stage.is_data_source}:
                if not all(out.exists for out in stage.outs):
                    repo.checkout([stage.addressing])
                repo.reproduce(stage.addressing, single_item=True)


def _digests(repo: Repo, files: Iterable[Path]) -> dict[Path, str]:
    """MD5 of the content of each file that can be read, in hex."""
    infos: dict[str, dict[str, Any]] = {}
    names = {file: os.path.abspath(file) for file in files}  # noqa: PTH100 - links stay
    for name in names.values():
        with suppress(OSError):  # a link to nothing
            info = repo.fs.info(name)
            if info["type"] == "file":
                infos[name] = info
    digests = {}
    fresh = []
    for name, _, hashed in repo.state.get_many(infos, repo.fs, infos):
        if hashed is not None and hashed.name == "md5":
            digests[name] = str(hashed.value)
        else:
            fresh.append(name)
    hashes = []
    for name in tqdm(fresh, desc="inputs", unit="file", delay=1):
        with suppress(OSError):  # it may not be ours to read
            _, hashed = hash_file(name, repo.fs, "md5", info=infos[name])
            digests[name] = str(hashed.value)
            hashes.append((name, hashed, infos[name]))
    repo.state.save_many(hashes, repo.fs)
    return {file: digests[name] for file, name in names.items() if name in digests}
