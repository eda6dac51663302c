"""What does each stage cost, in seconds of a clock and of the processor, before and after a change?

Each stage is run as `make run` runs it, by `dvc repro`, in a clone of each checkout's last commit,
with a home, a cache and artifacts of its own: one stage of one checkout, then the same stage of the
next, so that what else the machine does meets both. Processor seconds are those of the stage, of
all its workers, and of DVC, which `make run` starts once and this for every stage: the total is a
little more than `make run` takes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from ruamel.yaml import YAML

from benchmarks.reporting import describe_machine, markdown_table, one_line

STAGES = ("prepare", "search", "finetune", "evaluate", "export")

_SHOWN_OF_A_FAILURE = 2000
"""Characters at the end of what a stage said."""


@dataclass(frozen=True)
class Cost:
    """What one stage costs, or all of them.

    Attributes:
        wall: seconds that it took.
        cpu: processor seconds, in user and system mode, of its process and all its children.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Copy:
    """A clone of a checkout that stages are run in.

    Attributes:
        name: of the checkout, with its commit.
        folder: of the clone.
        home: of its evaluation store and its tracking.
    """

    name: str
    folder: Path
    home: Path


@click.command()
@click.option(
    "--checkout",
    "checkouts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    default=["."],
    show_default=True,
    help="Git checkout to measure; several, one option each, side by side.",
)
@click.option(
    "--stage",
    "stages",
    type=click.Choice(STAGES),
    multiple=True,
    default=STAGES,
    show_default=True,
    help="One option each.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change every checkout's params.yaml; one option each.",
)
@click.option(
    "--artifacts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What earlier stages wrote, for those that are left out.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Empty folder to run in, and to keep.  [default: a temporary one]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    checkouts: tuple[Path, ...],
    stages: tuple[str, ...],
    changes: tuple[str, ...],
    artifacts: Path | None,
    work: Path | None,
    json_file: Path | None,
) -> None:
    """Run stages of one or more checkouts in turns, and print a Markdown table.

    What is not committed is not measured. Environment variables are handed on; the two of the last
    example are what a processor without AVX-512 would do.

    \b
    Examples:
      python -m benchmarks.stages
      python -m benchmarks.stages --checkout ../before --checkout . --json stages.json
      python -m benchmarks.stages --stage evaluate --stage export --artifacts artifacts
      ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \\
        python -m benchmarks.stages --set runtime.precision=fp32
    """
    parsed = [_parsed(change) for change in changes]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if work is None else work.resolve()
        copies = [
            _copy(checkout, folder / str(index), parsed, artifacts)
            for index, checkout in enumerate(checkouts)
        ]
        measured: dict[str, dict[str, Cost]] = {copy.name: {} for copy in copies}
        if len(measured) < len(copies):
            raise click.UsageError(f"the checkouts are the same: {', '.join(measured)}")
        for copy in copies:
            if (copy.folder / "stages" / "inputs.py").is_file():  # a second; others depend on it
                _run(copy, "inputs")
        for stage in (stage for stage in STAGES if stage in stages):
            for copy in copies:
                cost = measured[copy.name][stage] = _run(copy, stage)
                said = f"{copy.name}, {stage}: {cost.wall:.1f} s, {cost.cpu:.1f} CPU s"
                click.echo(said, err=True)
    for costs in measured.values():
        costs["all"] = Cost(*(sum(getattr(c, n) for c in costs.values()) for n in ("wall", "cpu")))
    machine = describe_machine()
    click.echo(f"Machine: {one_line(machine)}\n")
    click.echo(_table(measured))
    if json_file is not None:
        seconds = {name: {s: vars(c) for s, c in costs.items()} for name, costs in measured.items()}
        content = {"machine": machine, "set": list(changes), "seconds": seconds}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _parsed(change: str) -> tuple[str, str, Any]:
    """Section, key and value of ``section.key=value``."""
    name, equals, value = change.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise click.BadParameter(
            f"{change!r} is not of the form section.key=value", param_hint="--set"
        )
    return section, key, YAML(typ="safe").load(value)


def _copy(
    checkout: Path,
    folder: Path,
    changes: Sequence[tuple[str, str, Any]],
    artifacts: Path | None,
) -> Copy:
    """Clone a checkout, and give it its params and what earlier stages wrote."""
    if folder.exists():
        raise click.UsageError(f"{folder} exists: choose another --work")
    if _git(checkout, "status", "--porcelain", "--untracked-files=no"):
        click.echo(f"{checkout}: what is not committed is not measured", err=True)
    clone = folder / "checkout"
    _git(Path.cwd(), "clone", "--quiet", str(checkout.resolve()), str(clone))
    commit = _git(clone, "rev-parse", "--short", "HEAD")
    params = clone / "params.yaml"
    text = YAML()  # keeps the comments
    content = text.load(params)
    for section, key, value in changes:
        if key not in content.get(section, {}):
            raise click.BadParameter(f"{params} has no {section}.{key}", param_hint="--set")
        content[section][key] = value
    text.dump(content, params)
    if artifacts is not None:
        shutil.copytree(artifacts, clone / "artifacts")
    return Copy(f"{checkout.resolve().name} {commit}", clone, folder / "home")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"git {arguments[0]} in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()


def _run(copy: Copy, stage: str) -> Cost:
    """Run one stage by DVC, whatever was run before."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", stage]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(copy.folder),
        "BIOTUNE_HOME": str(copy.home),
        "DVC_NO_ANALYTICS": "1",
    }
    log = copy.home.parent / f"{stage}.log"
    begin = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=copy.folder, env=environment, stdout=stream, stderr=stream
        )
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for already
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_OF_A_FAILURE:]
        raise click.ClickException(f"{stage} of {copy.name} failed:\n{said}")
    return Cost(wall, used.ru_utime + used.ru_stime)


def _table(measured: Mapping[str, Mapping[str, Cost]]) -> str:
    """A row a stage; the last column says how many times less the last checkout needs."""
    names = list(measured)
    columns = ["stage", *(f"{kind}, {name}" for kind in ("s", "CPU s") for name in names)]
    if len(names) > 1:
        columns.append("CPU s, first : last")
    rows = []
    for stage in measured[names[0]]:
        costs = [measured[name][stage] for name in names]
        cells = [f"{c.wall:.1f}" for c in costs] + [f"{c.cpu:.1f}" for c in costs]
        if len(names) > 1:
            cells.append(f"{costs[0].cpu / costs[-1].cpu:.2f}")
        rows.append([stage, *cells])
    return markdown_table(columns, rows)


if __name__ == "__main__":
    main()
