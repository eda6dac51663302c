"""Does the search search? BioTune against random search, CMA-ES and TPE on test functions.

Each seed is another problem with nine blocks: a *selective plan*, which trains 2 to 5 neighbouring
blocks, each at an ideal rate of its own (0.6x to 10x), and freezes the others. Trials on real
networks found this structure: their best plans train a few neighbouring blocks at high rates. A
plan's *mismatch* with an ideal plan is the mean over the blocks of

- a block that should learn: 1 if frozen, else the squared distance of its log10 rate from the
  ideal, at most 1, so that a rate off by a factor of ten is as bad as not learning;
- a block that should be frozen: 0 if frozen, else 0.25 at 0.1x rising to 1 at 10x.

The functions, in units of error rate:

- smooth: 0.02 + 0.5 x the mismatch with the selective plan;
- deceptive: the better of two basins: a broad one round full fine-tuning at 3x (0.06 + 0.25 x the
  mismatch, distances halved), and a deeper, steeper one at the selective plan (0.02 + 1.5 x it);
- joint: smooth, but 0.5 where fewer than two of the blocks that should learn are trained;
- noisy, slightly noisy: smooth, observed with a fresh error of N(0, 0.02) or N(0, 0.01) each time;
- steep: 0.02 + 1.5 x the squared mismatch, observed with an error of N(0, 0.01): the good plans are
  a point or two apart, as much as their noise, and the bad ones far off.

In all but the deceptive and the joint one, what a block does alone it does in company. That
flatters the surgical scan; in the joint one it learns nothing.

What counts is the true value of the point that a method returns: the one it observed to be best, or
with a ranking by the model the one that it expects most of. All methods see the same ten genes in
[0, 1], and all get the same number of evaluations, the scan's among them. A genome that trains
nothing scores 1.0.

Two settings: the paper's (population 10, elites 3, no recipes), 140 evaluations; and the pipeline's
default (population 6, elites 2, three of them recipes), 30 evaluations.

``BioTune, screened`` is what the pipeline does by default. Its parts are taken away or changed one
by one: the scan, the ranking by the model, κ, and how many are bred for a place. Seeds from 5000 on
were looked at when all was decided; whoever changes something chooses by others.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import click
import cmaes  # type: ignore[import-untyped]
import numpy as np
import optuna
from numpy.typing import NDArray
from tqdm import tqdm

from biotune.evolution import BioTune, FineTunePlan, Genome, Screening, decode

BLOCKS = [f"block{i}" for i in range(9)]
NOISE = {
    "smooth": 0.0,
    "deceptive": 0.0,
    "joint": 0.0,
    "slightly noisy": 0.01,
    "noisy": 0.02,
    "steep": 0.01,
}
"""Standard deviation of an observation of each function."""


@dataclass(frozen=True)
class Setting:
    """How large a search is: evaluations, N, E, and whether it knows the recipes."""

    budget: int
    population: int
    elites: int
    seed_recipes: bool


SETTINGS = {"paper": Setting(140, 10, 3, False), "default": Setting(30, 6, 2, True)}


Method = Callable[["Objective", int], None]


def mismatch(plan: FineTunePlan, ideal: FineTunePlan, tolerance: float = 1.0) -> float:
    """How far a plan is from an ideal one, in [0, 1]; see the top of this file.

    Args:
        tolerance: the distance in log10 rate that is as bad as freezing a block that should learn.
    """
    costs = []
    for multiplier, best in zip(plan.values(), ideal.values(), strict=True):
        if multiplier is None:
            costs.append(0.0 if best is None else 1.0)
        elif best is None:
            costs.append(0.25 + 0.75 * (np.log10(multiplier) + 1) / 2)
        else:
            costs.append(min(1.0, (np.log10(multiplier / best) / tolerance) ** 2))
    return float(np.mean(costs))


class Objective:
    """One test function on the problem of one seed; remembers the best that was observed."""

    def __init__(self, function: str, setting: Setting, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])  # apart from the generator of any method
        self.function = function
        self.setting = setting
        self.selective = selective_plan(rng)
        self.returned: Genome | None = None
        self.best_observed = np.inf
        self.left = setting.budget
        self._noise = rng

    def true_value(self, genome: Genome) -> float:
        plan = decode(genome, BLOCKS)
        if not plan.trained_blocks:
            return 1.0
        selective = mismatch(plan, self.selective)
        if self.function == "deceptive":
            full = mismatch(plan, FineTunePlan(dict.fromkeys(BLOCKS, 3.0)), tolerance=2.0)
            return min(0.06 + 0.25 * full, 0.02 + 1.5 * selective)
        if self.function == "steep":
            return 0.02 + 1.5 * selective**2
        hits = set(plan.trained_blocks) & set(self.selective.trained_blocks)
        if self.function == "joint" and len(hits) < 2:
            return 0.5
        return 0.02 + 0.5 * selective

    def observe(self, genome: Genome) -> float:
        value = self.true_value(genome)
        if NOISE[self.function]:
            value += NOISE[self.function] * self._noise.standard_normal()
        self.left -= 1
        if value < self.best_observed:
            self.best_observed, self.returned = value, genome
        return value


def selective_plan(rng: np.random.Generator) -> FineTunePlan:
    """The best plan of a problem: a few neighbouring blocks, each at its own rate."""
    length = int(rng.integers(2, 6))
    first = int(rng.integers(0, len(BLOCKS) - length + 1))
    rates = 10 ** rng.uniform(-0.2, 1, len(BLOCKS))
    trained = range(first, first + length)
    return FineTunePlan(
        {b: float(rates[i]) if i in trained else None for i, b in enumerate(BLOCKS)}
    )


def biotune(**options: Any) -> Method:
    """BioTune with these options, until the budget is spent, if need be within a generation."""

    def search_with(objective: Objective, seed: int) -> None:
        setting = objective.setting
        search = BioTune(
            BLOCKS,
            population=setting.population,
            generations=setting.budget,  # never reached
            elites=setting.elites,
            seed=seed,
            seed_recipes=setting.seed_recipes,
            **options,
        )
        while objective.left:
            for candidate in search.ask()[: objective.left]:
                search.tell(candidate, objective.observe(candidate.genome))
        objective.returned = search.best.genome

    return search_with


def random_search(objective: Objective, seed: int) -> None:
    rng = np.random.default_rng(seed)
    while objective.left:
        objective.observe(Genome.random_viable(rng, len(BLOCKS)))


def cma_es(objective: Objective, seed: int) -> None:
    genes = len(BLOCKS) + 1
    bounds = np.tile([0.0, 1.0], (genes, 1))
    search = cmaes.CMA(np.full(genes, 0.5), 0.3, bounds=bounds, seed=seed, population_size=10)
    while objective.left >= search.population_size:
        asked = [search.ask() for _ in range(search.population_size)]
        search.tell([(genes, objective.observe(Genome.from_genes(genes))) for genes in asked])


def tpe(objective: Objective, seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed)
    study = optuna.create_study(sampler=sampler)
    names = [*BLOCKS, "threshold"]

    def evaluate(trial: optuna.Trial) -> float:
        genes = [trial.suggest_float(name, 0, 1) for name in names]
        return objective.observe(Genome.from_genes(genes))

    study.optimize(evaluate, n_trials=objective.left)


def screened(*, scan: bool = True, **settings: Any) -> Method:
    """BioTune with screening, and with these of its settings."""
    return biotune(surgical_scan=scan, screening=Screening(**settings))


SEARCHES: dict[str, Method] = {
    "BioTune": biotune(),
    "BioTune, sequential": biotune(reproduction="sequential"),
    "BioTune, surgical scan": biotune(surgical_scan=True),
    "BioTune, screened": screened(),
    "random search": random_search,
}
"""Run on all seeds."""

PARTS: dict[str, Method] = {
    "screened, no scan": screened(scan=False),
    "screened, ranked by the model": screened(ranks=True),
    "screened, κ = 0": screened(optimism=0.0),
    "screened, κ = 2": screened(optimism=2.0),
    "screened, 10 bred for each place": screened(proposals=10),
    "screened, 40 bred for each place": screened(proposals=40),
    "CMA-ES": cma_es,
    "TPE": tpe,
}
"""Run on some of the seeds: what the screening is made of, and rivals that take longer."""


@dataclass(frozen=True)
class Trial:
    """One method on one function and seed, and the true value of the point that it returned."""

    setting: str
    function: str
    method: str
    seed: int
    value: float = np.nan


def run(trial: Trial) -> Trial:
    """The trial with its value.

    Raises:
        ValueError: if the method did not use the budget that all have.
    """
    objective = Objective(trial.function, SETTINGS[trial.setting], trial.seed)
    (SEARCHES | PARTS)[trial.method](objective, trial.seed)
    if objective.left or objective.returned is None:
        raise ValueError(f"expected no evaluations to be left, got {objective.left}: {trial}")
    return replace(trial, value=objective.true_value(objective.returned))


def plan_trials(
    settings: Sequence[str], functions: Sequence[str], seeds: range, part_seeds: int
) -> list[Trial]:
    return [
        Trial(setting, function, method, seed)
        for setting in settings
        for function in functions
        for methods, some in ((SEARCHES, seeds), (PARTS, seeds[:part_seeds]))
        for method in methods
        for seed in some
    ]


def interval_of_median(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the medians of samples drawn with replacement."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def summarise(trials: list[Trial], seeds: int) -> list[dict[str, object]]:
    """Median true value and shares of won seeds, of every method that ran on the first seeds."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for trial in trials:
        values.setdefault((trial.setting, trial.function, trial.method), []).append(trial.value)
    rows: list[dict[str, object]] = []
    for (setting, function, method), all_values in values.items():
        achieved = np.array(all_values[:seeds])
        if achieved.size < seeds:
            continue
        row: dict[str, object] = {"setting": setting, "function": function, "method": method}
        row["median"] = float(np.median(achieved))
        row["interval"] = interval_of_median(achieved)
        for rival in ("random search", "BioTune"):
            theirs = np.array(values[setting, function, rival][:seeds])
            row[f"won against {rival}"] = float(np.mean(achieved < theirs))
            row[f"lost against {rival}"] = float(np.mean(achieved > theirs))
        rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, object]], seeds: int) -> str:
    lines = [
        f"| function, {seeds} seeds | method | median true value | 95 % interval | "
        "seeds won against random | won : lost against BioTune |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        method = row["method"]
        random = f"{row['won against random search']:.1%}"
        plain = f"{row['won against BioTune']:.1%} : {row['lost against BioTune']:.1%}"
        low, high = cast("tuple[float, float]", row["interval"])
        lines.append(
            f"| {row['function']} | {method} | {row['median']:.4f} | {low:.4f} to {high:.4f} | "
            f"{'' if method == 'random search' else random} | "
            f"{'' if method == 'BioTune' else plain} |"
        )
    return "\n".join(lines)


@click.command()
@click.option(
    "--function",
    "functions",
    multiple=True,
    type=click.Choice(list(NOISE)),
    default=list(NOISE),
    help="Only this one; may be repeated.",
)
@click.option(
    "--setting",
    "settings",
    multiple=True,
    type=click.Choice(list(SETTINGS)),
    default=list(SETTINGS),
    help="Only this one. A screened search of the paper's takes some seconds.",
)
@click.option("--seeds", default=100, show_default=True, type=click.IntRange(1))
@click.option("--first-seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--part-seeds",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Seeds of CMA-ES, TPE and the parts of the screening, the first ones of all.",
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the values here.")
def main(
    functions: tuple[str, ...],
    settings: tuple[str, ...],
    seeds: int,
    first_seed: int,
    part_seeds: int,
    workers: int,
    json_path: Path | None,
) -> None:
    """Compare BioTune with other searches on functions shaped like fine-tuning.

    \b
    Examples:
      python benchmarks/optimizer.py
      python benchmarks/optimizer.py --seeds 20 --part-seeds 0
      python benchmarks/optimizer.py --function noisy --function joint
      python benchmarks/optimizer.py --seeds 200 --first-seed 5000 --json optimizer.json
    """
    started = time.perf_counter()
    planned = plan_trials(settings, functions, range(first_seed, first_seed + seeds), part_seeds)
    # Matrices are small: more threads than workers only get in each other's way. Set before the
    # workers load numpy, so they are started afresh.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        trials = list(tqdm(pool.map(run, planned, chunksize=5), total=len(planned), unit="trial"))
    tables = [seeds]
    if 0 < part_seeds < seeds:
        tables.append(part_seeds)
    summary = {str(count): summarise(trials, count) for count in tables}
    for count in tables:
        for name in settings:
            rows = [row for row in summary[str(count)] if row["setting"] == name]
            click.echo(f"{name} setting, {SETTINGS[name].budget} evaluations each\n")
            click.echo(as_markdown(rows, count) + "\n")
    click.echo(f"{time.perf_counter() - started:.0f} s in all")
    if json_path is not None:
        described = {name: vars(SETTINGS[name]) for name in settings}
        content = {"settings": described, "summary": summary, "trials": [vars(t) for t in trials]}
        json_path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
