"""Whole real searches at equal CPU seconds: what do screening, breeding and a search give?

Every set of images is divided and searched several times; a repetition's number is the seed of the
division and of every search on it. Its arms, of which
:mod:`benchmarks.comparison.arms` says what each does:

- ``screened``: the search of the params file.
- ``today``: the search of commit 4af523c, which goes on breeding until its CPU seconds reach those
  of the evolution of ``screened``.
- ``generation 0``: scan and initial population of ``screened``; the seconds that breeding took
  there go to further training seeds of its best candidates.
- ``best recipe``: every recipe at every rate of the grid, the best three confirmed, at any cost.

Cost is the CPU seconds of the training runs, one thread each, of evolution and confirmation apart.
Each arm pays for all its runs, also for those that another has trained; those take no time again.
Each arm's processes start anew, with empty feature caches. The winner of each is trained by five
seeds that no search uses, the best epoch by validation, and scored on the test split; this is not
counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from filelock import FileLock, Timeout

from benchmarks.comparison.arms import TODAY_EPOCHS, Comparison
from benchmarks.comparison.repetition import Repetition
from benchmarks.comparison.report import report
from benchmarks.comparison.rows import COLUMNS, TESTED, Row, Table
from benchmarks.reporting import PRECISIONS, compute_of, describe_machine, one_line
from benchmarks.trainers import OutOfTime, TrainingProcesses, running_options
from biotune.data import PreparedImages
from biotune.finetuning.backbones import block_sizes, weights_identity
from biotune.finetuning.hardware import instruction_set
from biotune.images import ImageFolderSource, prepare_images
from biotune.images.sources import DigitsSource
from pipeline.artifacts import write_json
from pipeline.params import Params, load_params
from pipeline.trials.code_version import code_hash
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.store import EvaluationStore, shared_inputs
from pipeline.trials.worker import TrainerSetup

CACHE_BYTES = 1_000_000_000
"""Of each process, for the features of frozen prefixes."""

DIGITS_SIZE, FOLDER_SIZE = 32, 64
"""Pixels to which every image is stretched."""

Sets = Mapping[str, Path | None]
"""Name of a set → its folder, or None for scikit-learn's digits."""


def parse_sets(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Sets:
    """A click callback: ``digits`` and ``NAME=FOLDER``.

    Raises:
        click.BadParameter: for anything else, or a name that occurs twice.
    """
    sets: dict[str, Path | None] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        path = Path(folder) if equals else None
        if not re.fullmatch(r"[\w.-]+", name) or name in sets or (name == "digits") == bool(equals):
            raise click.BadParameter(f"{value!r}: give digits, or NAME=FOLDER, each name once")
        if path is not None and not path.is_dir():
            raise click.BadParameter(f"{value!r}: there is no folder {path}; one folder a class")
        sets[name] = path
    return sets


@dataclass(frozen=True)
class Setting:
    """What all repetitions have in common.

    Attributes:
        params: the sections ``search`` and ``model`` are used.
        examples: images to train on, and as many to validate on.
        precision: that all is trained in.
        today_epochs: of each run of the earlier search.
        workers: training runs side by side.
        nice: of the processes that train.
        work: folder of everything that is kept.
        end: on the clock of :func:`time.monotonic`; no run is started after it.
    """

    params: Params
    examples: int
    precision: str
    today_epochs: int
    workers: int
    nice: int
    work: Path
    end: float

    def run(self, sets: Sets, repetitions: int, rows: Table) -> Iterator[Row]:
        """Every repetition of every set; see :meth:`Repetition.run`."""
        tested = Table(self.work / "tested.csv", TESTED)
        for number in range(repetitions):
            for name, folder in sets.items():
                yield from self._run(name, folder, number, rows, tested)

    def _run(
        self, name: str, folder: Path | None, number: int, rows: Table, tested: Table
    ) -> Iterator[Row]:
        prepared, images = self._prepare(name, folder, number)
        model = self.params.model
        compute = compute_of(self.precision, model.backbone)
        weights = weights_identity(model.backbone, model.weights)
        setup = TrainerSetup(
            prepared=prepared,
            backbone=model.backbone,
            weights=model.weights,
            compute=compute,
            feature_cache_bytes=CACHE_BYTES,
            code=code_hash(),
        )
        inputs = shared_inputs(images.fingerprint, model.backbone, weights, compute)
        with closing(EvaluationStore(self.work, inputs)) as store:
            yield from Repetition(
                images=name,
                number=number,
                comparison=Comparison(
                    section=self.params.search.model_copy(update={"seed": number}),
                    blocks=tuple(block_sizes(model.backbone, len(images.classes))),
                    today_epochs=self.today_epochs,
                ),
                store=store,
                open_processes=partial(
                    TrainingProcesses.open, setup, self.workers, self.nice, self._may_start
                ),
                rows=rows,
                tested=tested,
                made_by={
                    "fingerprint": images.fingerprint[:12],
                    "precision": compute.precision,
                    "torch": torch.__version__,
                    "instruction_set": instruction_set("cpu"),
                    "code": _code(),
                },
            ).run()

    def _prepare(self, name: str, folder: Path | None, number: int) -> tuple[Path, PreparedImages]:
        prepared = self.work / "prepared" / f"{name}-{number}"
        if not prepared.exists():
            prepare_images(
                DigitsSource() if folder is None else ImageFolderSource(folder, "white"),
                prepared,
                image_size=DIGITS_SIZE if folder is None else FOLDER_SIZE,
                train_images=self.examples,
                validation_images=self.examples,
                seed=number,
            )
        return prepared, PreparedImages.open(prepared)

    def _may_start(self) -> bool:
        return time.monotonic() < self.end

    def check_folder(self, sets: Sets) -> None:
        """Note what the work folder is for, or find that it is for something else.

        Raises:
            click.UsageError: if it was begun with other settings, or with other images of a name.
        """
        now: dict[str, Any] = {
            "search": self.params.search.model_dump(mode="json", exclude={"seed"}),
            "model": self.params.model.model_dump(mode="json"),
            "examples": self.examples,
            "precision": self.precision,
            "today_epochs": self.today_epochs,
        }
        folders = {name: str(path and path.resolve()) for name, path in sets.items()}
        file = self.work / "settings.json"
        before = json.loads(file.read_text()) if file.exists() else {**now, "images": {}}
        other = [key for key in now if before.get(key) != now[key]]
        other += [n for n, path in folders.items() if before["images"].get(n, path) != path]
        if other:
            raise click.UsageError(
                f"{self.work} was begun with other settings ({', '.join(other)}, see {file}): give "
                "those, or name another --work"
            )
        write_json(file, {**now, "images": {**before["images"], **folders}})


def _code() -> str:
    """The beginning of a hash of the code that searches and trains."""
    modules = (
        "biotune.finetuning.fitness",
        "biotune.evolution.optimizer",
        "pipeline.evolving.loop",
    )
    return hashlib.sha256(" ".join(map(code_hash, modules)).encode()).hexdigest()[:12]


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option(
    "--images",
    "sets",
    multiple=True,
    default=("digits",),
    show_default=True,
    callback=parse_sets,
    help="digits (32 px), or NAME=FOLDER with one folder a class (64 px); may be repeated.",
)
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(0))
@click.option(
    "--examples",
    default=300,
    show_default=True,
    type=click.IntRange(1),
    help="Images to train on, and as many to validate on; the rest is the test.",
)
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(PRECISIONS))
@click.option(
    "--today-epochs",
    default=TODAY_EPOCHS,
    show_default=True,
    type=click.IntRange(1),
    help="Of each run of the earlier search, whatever the params file says.",
)
@running_options
@click.option("--work", type=click.Path(path_type=Path), default=Path(".biotune/search_benchmark"))
@click.option("--report", "report_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    params_file: Path,
    sets: Sets,
    repetitions: int,
    examples: int,
    precision: str,
    today_epochs: int,
    workers: int | None,
    nice: int,
    limit_seconds: float | None,
    work: Path,
    report_file: Path | None,
) -> None:
    """Compare whole searches at equal CPU seconds, and print Markdown tables.

    The work folder keeps images, runs, and one row an arm in rows.csv. The same command goes on
    after it was stopped or killed; only the runs in flight are lost.

    \b
    Examples:
      python -m benchmarks.search
      python -m benchmarks.search --images digits --images flowers=FOLDER --report search.md
      python -m benchmarks.search --limit-seconds 3600 --nice 19
      python -m benchmarks.search --repetitions 0        # the report of what is there
    """
    params = load_params(params_file)
    if params.search.folds > 1 or not params.search.seed_recipes:
        raise click.UsageError(
            f"{params_file}: arms can be compared with search.folds: 1 and search.seed_recipes: "
            "true alone"
        )
    setting = Setting(
        params=params,
        examples=examples,
        precision=precision,
        today_epochs=today_epochs,
        workers=resolve_workers(workers or "auto", "cpu"),
        nice=nice,
        work=work,
        end=time.monotonic() + (limit_seconds or float("inf")),
    )
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            setting.check_folder(sets)
            rows = Table(work / "rows.csv", COLUMNS)
            _follow(setting, sets, repetitions, rows)
    except Timeout as error:
        raise click.UsageError(f"another benchmark is using {work}: wait for it") from error
    if not rows.rows:
        return
    head = f"Machine: {one_line(describe_machine())}\n\n"
    text = head + report([Row.from_row(row) for row in rows.rows])
    click.echo(text)
    if report_file is not None:
        report_file.write_text(text, encoding="utf-8")


def _follow(setting: Setting, sets: Sets, repetitions: int, rows: Table) -> None:
    """Run what is missing, and say each arm when it is there."""
    try:
        for row in setting.run(sets, repetitions, rows):
            found = row.found
            click.echo(
                f"{row.images} {row.repetition}, {row.arm}: {found.origin}, generation "
                f"{found.generation}, confirmed {found.confirmed:.4f}, test "
                f"{row.test.balanced_accuracy:.4f}; {found.evolution_seconds:.0f} + "
                f"{found.confirmation_seconds:.0f} CPU s"
            )
    except OutOfTime as error:
        click.echo(f"The time is over: {error}. The same command goes on.")


if __name__ == "__main__":
    main()
