"""Many simulated searches of several methods on recorded landscapes: who finds better plans at what
cost, where winners come from, and whom racing stops."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.landscapes.landscape import SimulatedLandscape
from benchmarks.landscapes.methods import METHODS, REFERENCE
from benchmarks.landscapes.simulator import SimulatedRuns
from benchmarks.reporting import markdown_table
from biotune.evolution.candidate import Candidate
from biotune.finetuning.fitness import TrainingTask, evaluate
from pipeline.evolving.confirmation import Confirmation
from pipeline.evolving.loop import EvaluatedCandidate, SearchResult
from pipeline.params import SearchParams, load_params
from pipeline.trials.machine import training_settings

MORE_SEEDS = range(5000, 5008)
"""Training seeds that no search has: their mean says what a candidate is worth on its images."""

ORIGINS = ("recipe", "scan", "combination", "random", "bred")


@dataclass(frozen=True)
class Experiment:
    """One search: a method on one replicate of a landscape.

    Attributes:
        landscape: its recording.
        method: a key of :data:`METHODS`.
        replicate: seeds the search and the landscape.
        budget: CPU seconds that evolution may take; see :data:`~.methods.Method`.
    """

    landscape: Path
    method: str
    replicate: int
    budget: float = 0.0


@dataclass(frozen=True)
class Row:
    """What came of an experiment.

    Attributes:
        landscape, method, replicate: of the experiment.
        truth: mean test score of the winner, in [0, 1].
        regret: by how much the landscape's best plan is better.
        recipe_truth: mean test score of the best recipe, which was confirmed beside it.
        winner: where it came from: one of :data:`ORIGINS`.
        evolution_seconds, confirmation_seconds: CPU seconds.
        runs: trained in all.
        bred: candidates of generation 1 or later with a plan that was not told before.
        bred_elites: those of them that were among the best elites' number when their generation
            was over.
        deserving: those of them that would have become an elite by the mean of
            :data:`MORE_SEEDS` on the same images, whatever their own score: which beats that of
            the worst elite then.
        deserving_stopped: those of these that were stopped.
        seconds: that the simulation took.
    """

    landscape: str
    method: str
    replicate: int
    truth: float
    regret: float
    recipe_truth: float
    winner: str
    evolution_seconds: float
    confirmation_seconds: float
    runs: int
    bred: int
    bred_elites: int
    deserving: int
    deserving_stopped: int
    seconds: float


@cache
def open_landscapes(file: Path) -> tuple[SimulatedLandscape, ...]:
    """A landscape, once in each process, and what was recorded of it on other schedules: in
    ``digits32-4.csv`` for ``digits32.csv``."""
    return tuple(map(SimulatedLandscape, (file, *sorted(file.parent.glob(f"{file.stem}-*.csv")))))


def run(experiment: Experiment, section: SearchParams) -> Row:
    """One search, and what is known of it in truth."""
    landscape, *others = open_landscapes(experiment.landscape)
    begin = time.perf_counter()
    runs = SimulatedRuns([landscape, *others], experiment.replicate)
    section = section.model_copy(update={"seed": experiment.replicate})
    method = METHODS[experiment.method]
    result, evolution = method(section, landscape.blocks, runs, experiment.budget)
    seconds = time.perf_counter() - begin
    truth = landscape.truth(result.winner.plan)
    return Row(
        landscape=landscape.name,
        method=experiment.method,
        replicate=experiment.replicate,
        truth=truth,
        regret=landscape.best_truth - truth,
        recipe_truth=landscape.truth(result.best_recipe.plan),
        winner=origin_of(result.winner),
        evolution_seconds=evolution,
        confirmation_seconds=runs.workers.cpu_seconds - evolution,
        runs=runs.workers.runs,
        **whom_racing_stops(result, landscape, section, experiment.replicate),
        seconds=seconds,
    )


def origin_of(winner: Confirmation) -> str:
    """One of :data:`ORIGINS`."""
    kind = winner.candidate.origin.partition(":")[0] if winner.candidate else "recipe"
    return kind if kind in ORIGINS else "bred"


def whom_racing_stops(
    result: SearchResult, landscape: SimulatedLandscape, section: SearchParams, replicate: int
) -> dict[str, int]:
    """The last counts of a :class:`Row`, by what was told."""
    deviations = landscape.deviations(replicate)
    settings = training_settings(section)
    counts = dict.fromkeys(("bred", "bred_elites", "deserving", "deserving_stopped"), 0)
    for told in result.evaluated:
        candidate = told.candidate
        if candidate.generation == 0 or told.repeat_of is not None:
            continue
        exploited = candidate.role != "trial"  # its generation's trials are told before it is bred
        before = _best(result.evaluated, candidate, section.elites, trials=exploited)
        after = _best(result.evaluated, candidate, section.elites)
        curves = [
            landscape.curve(TrainingTask(candidate.plan, seed, settings), deviations)
            for seed in MORE_SEEDS
        ]
        deserves = evaluate(curves).fitness < before[-1].fitness
        counts["bred"] += 1
        counts["bred_elites"] += candidate in after
        counts["deserving"] += deserves
        counts["deserving_stopped"] += deserves and not candidate.finished
    return counts


def _best(
    evaluated: Iterable[EvaluatedCandidate],
    candidate: Candidate,
    count: int,
    *,
    trials: bool | None = None,
) -> Sequence[Candidate]:
    """The best distinct plans told before a candidate was bred, by their own scores.

    Args:
        trials: whether the trials of its generation are among them; None: all of its generation.
    """
    told = [
        e.candidate
        for e in evaluated
        if e.repeat_of is None
        and e.candidate.generation <= candidate.generation
        and (
            e.candidate.generation < candidate.generation
            or trials is None
            or (trials and e.candidate.role == "trial")
        )
    ]
    return sorted(told, key=lambda candidate: candidate.rank_key)[:count]


def summarise(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A table's rows: of each landscape and method, and pooled over landscapes."""
    landscapes = list(dict.fromkeys(row.landscape for row in rows))
    groups = [(name, [row for row in rows if row.landscape == name]) for name in landscapes]
    if len(landscapes) > 1:
        groups.append(("all", list(rows)))
    table = []
    for name, group in groups:
        reference = {(r.landscape, r.replicate): r for r in group if r.method == REFERENCE}
        for method in dict.fromkeys(row.method for row in group):
            of_method = [row for row in group if row.method == method]
            paired = [reference[row.landscape, row.replicate] for row in of_method]
            table.append({"landscape": name, "method": method, **_cells(of_method, paired)})
    return table


def _cells(rows: Sequence[Row], paired: Sequence[Row]) -> dict[str, str]:
    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    regret = 100 * np.array([row.regret for row in rows])
    difference = regret - 100 * np.array([row.regret for row in paired])
    bred, deserving = (sum(getattr(row, name) for row in rows) for name in ("bred", "deserving"))
    elites, stopped = (
        sum(getattr(row, name) for row in rows) for name in ("bred_elites", "deserving_stopped")
    )
    evolution, confirmation = mean("evolution_seconds"), mean("confirmation_seconds")
    return {
        "searches": str(len(rows)),
        "regret, test points": _with_interval(regret, rows),
        f"against {REFERENCE}": _with_interval(difference, rows) if difference.any() else "",
        "recipe's": f"{100 * np.mean([r.regret + r.truth - r.recipe_truth for r in rows]):.2f}",
        "CPU s, evolution": f"{evolution:.0f}",
        "confirmation": f"{confirmation:.0f}",
        "all": f"{evolution + confirmation:.0f}",
        **{f"{o} wins": f"{np.mean([row.winner == o for row in rows]):.0%}" for o in ORIGINS},
        "bred elites": f"{elites} of {bred}",
        "stopped of deserving": f"{stopped} of {deserving}",
        "s a search": f"{mean('seconds'):.2f}",
    }


def _with_interval(values: NDArray[np.float64], rows: Sequence[Row], draws: int = 2000) -> str:
    """A mean, and its 95 % interval by drawing replicates anew within each landscape."""
    rng = np.random.default_rng(0)
    landscapes = np.array([row.landscape for row in rows])
    parts = [values[landscapes == name] for name in dict.fromkeys(landscapes.tolist())]
    means = [rng.choice(part, (draws, part.size)).mean(axis=1) for part in parts]
    weights = [part.size / values.size for part in parts]
    low, high = np.quantile(np.average(means, axis=0, weights=weights), (0.025, 0.975))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def run_all(
    landscapes: Sequence[Path],
    methods: Sequence[str],
    replicates: int,
    workers: int,
    section: SearchParams,
) -> list[Row]:
    """The reference first, then all others with the mean of what it spent on the landscape."""
    rows: list[Row] = []
    others = [method for method in methods if method != REFERENCE]
    total = len(landscapes) * (1 + len(others)) * replicates
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(total=total, unit="search") as bar,
    ):

        def add(experiments: Sequence[Experiment]) -> None:
            sections = [section] * len(experiments)
            for row in pool.map(run, experiments, sections, chunksize=5):
                rows.append(row)
                bar.update()

        add([Experiment(f, REFERENCE, n) for f in landscapes for n in range(replicates)])
        budgets = {
            file: float(np.mean([r.evolution_seconds for r in rows if r.landscape == file.stem]))
            for file in landscapes
        }
        add(
            [
                Experiment(file, method, replicate, budgets[file])
                for file in landscapes
                for method in others
                for replicate in range(replicates)
            ]
        )
    return rows


@click.command()
@click.option(
    "--landscape",
    "landscapes",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A recording, whose truth counts; may be repeated. By default those beside this file. "
    "Methods may train on other schedules of it, too, such as digits32-4.csv of digits32.csv.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    default=list(METHODS),
    help=f"Only this one and {REFERENCE}; may be repeated.",
)
@click.option("--replicates", default=200, show_default=True, type=click.IntRange(2))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@click.option(
    "--params",
    "params_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default="params.yaml",
    show_default=True,
    help="Its search section is what is run; its epochs must be the recordings'.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all rows here.")
def main(
    landscapes: tuple[Path, ...],
    methods: tuple[str, ...],
    replicates: int,
    workers: int,
    params_file: Path,
    json_file: Path | None,
) -> None:
    """Compare whole simulated searches on recorded landscapes.

    \b
    Examples:
      python -m benchmarks.landscapes.campaign
      python -m benchmarks.landscapes.campaign --method full --replicates 50
      python -m benchmarks.landscapes.campaign --landscape benchmarks/landscapes/flowers64.csv
    """
    recordings = sorted(Path(__file__).parent.glob("*.csv"))
    files = landscapes or tuple(file for file in recordings if "-" not in file.stem)
    section = load_params(params_file).search
    # Matrices are small. Set before the workers load numpy, so they are started afresh.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    rows = run_all(files, methods, replicates, workers, section)
    table = summarise(rows)
    click.echo(markdown_table(list(table[0]), [list(cells.values()) for cells in table]))
    if json_file is not None:
        content = {"summary": table, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
