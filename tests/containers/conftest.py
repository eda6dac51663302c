"""The engine with both images, once; and one checkout whose stages ran in containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.checkout import Clone, make_clone
from tests.containers.engine import Engine, why_not


@dataclass(frozen=True)
class Reproduced:
    """A checkout whose stages ran in containers, and what it held before."""

    clone: Clone
    files_before: frozenset[str]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    engine = Engine(caches / "biotune-test-containers")
    engine.configure()
    # Names, tags and the storage are the same for all checkouts: one run of these at a time.
    with FileLock(engine.cache / "lock"):
        engine.build()
        yield engine
        assert engine.containers() == []


@pytest.fixture(scope="session")
def reproduced(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """``BIOTUNE_RUNTIME=podman dvc repro`` on the tiny setting."""
    variables = {**engine.environment, "BIOTUNE_RUNTIME": "podman"}
    clone = make_clone(tmp_path_factory.mktemp("containers"), {}, **variables)
    before = frozenset(files(clone.folder))
    assert clone.repro() == {"prepare", "search", "finetune", "evaluate", "export"}
    return Reproduced(clone, before)


def files(folder: Path) -> list[str]:
    """Every file below a folder, but git's own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return [path.as_posix() for path in paths if path.parts[0] != ".git"]
