"""Does the search search? BioTune against random search, CMA-ES and TPE on test functions.

Each seed is another problem with nine blocks: a *selective plan*, which trains 2 to 5 neighbouring
blocks, each at an ideal rate of its own (0.6x to 10x), and freezes the others. Trials on real
networks found this structure: their best plans train a few neighbouring blocks at high rates. A
plan's *mismatch* with an ideal plan is the mean over the blocks of

- a block that should learn: 1 if frozen, else the squared distance of its log10 rate from the
  ideal, at most 1, so that a rate off by a factor of ten is as bad as not learning;
- a block that should be frozen: 0 if frozen, else 0.25 at 0.1x rising to 1 at 10x.

The three functions, in units of error rate:

- smooth: 0.02 + 0.5 x the mismatch with the selective plan;
- deceptive: the better of two basins: a broad one round full fine-tuning at 3x (0.06 + 0.25 x the
  mismatch, distances halved), and a deeper, steeper one at the selective plan (0.02 + 1.5 x it);
- noisy: smooth, observed with a fresh error of N(0, 0.02) each time.

A method returns the point that it observed to be best; what counts is the true value of that
point. All methods see the same ten genes in [0, 1] and ask for 140 evaluations (the paper's
population 10, generations 10, elites 3). A genome that trains nothing scores 1.0.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import cmaes  # type: ignore[import-untyped]
import numpy as np
import optuna

from biotune.evolution import BioTune, FineTunePlan, Genome, decode

BLOCKS = [f"block{i}" for i in range(9)]
FUNCTIONS = ["smooth", "deceptive", "noisy"]
BUDGET = 140
NOISE = 0.02


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

    def __init__(self, function: str, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])  # apart from the generator of any method
        self.function = function
        self.selective = selective_plan(rng)
        self.returned: Genome | None = None
        self.best_observed = np.inf
        self.evaluations = 0
        self._noise = rng

    def true_value(self, genome: Genome) -> float:
        plan = decode(genome, BLOCKS)
        if not plan.trained_blocks:
            return 1.0
        selective = mismatch(plan, self.selective)
        if self.function != "deceptive":
            return 0.02 + 0.5 * selective
        full = mismatch(plan, FineTunePlan(dict.fromkeys(BLOCKS, 3.0)), tolerance=2.0)
        return min(0.06 + 0.25 * full, 0.02 + 1.5 * selective)

    def observe(self, genome: Genome) -> float:
        value = self.true_value(genome)
        if self.function == "noisy":
            value += NOISE * self._noise.standard_normal()
        self.evaluations += 1
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


def biotune(objective: Objective, seed: int) -> None:
    _evolve(BioTune(BLOCKS, seed=seed, seed_recipes=False), objective)


def biotune_sequential(objective: Objective, seed: int) -> None:
    search = BioTune(BLOCKS, seed=seed, seed_recipes=False, reproduction="sequential")
    _evolve(search, objective)


def _evolve(search: BioTune, objective: Objective) -> None:
    while not search.done:
        for candidate in search.ask():
            search.tell(candidate, objective.observe(candidate.genome))


def random_search(objective: Objective, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(BUDGET):
        objective.observe(Genome.random_viable(rng, len(BLOCKS)))


def cma_es(objective: Objective, seed: int) -> None:
    genes = len(BLOCKS) + 1
    bounds = np.tile([0.0, 1.0], (genes, 1))
    search = cmaes.CMA(np.full(genes, 0.5), 0.3, bounds=bounds, seed=seed, population_size=10)
    for _ in range(BUDGET // search.population_size):
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

    study.optimize(evaluate, n_trials=BUDGET)


Method = Callable[[Objective, int], None]
SEARCHES: dict[str, Method] = {
    "BioTune": biotune,
    "BioTune, sequential": biotune_sequential,
    "random search": random_search,
}
REFERENCES: dict[str, Method] = {"CMA-ES": cma_es, "TPE": tpe}


@dataclass(frozen=True)
class Trial:
    """One method on one function and seed, and the true value of the point that it returned."""

    function: str
    method: str
    seed: int
    value: float = np.nan


def run(trial: Trial) -> Trial:
    """The trial with its value.

    Raises:
        ValueError: if the method did not use the budget that all have.
    """
    objective = Objective(trial.function, trial.seed)
    (SEARCHES | REFERENCES)[trial.method](objective, trial.seed)
    if objective.evaluations != BUDGET or objective.returned is None:
        raise ValueError(f"expected {BUDGET} evaluations, got {objective.evaluations}: {trial}")
    value = objective.true_value(objective.returned)
    return Trial(trial.function, trial.method, trial.seed, value)


def plan_trials(seeds: int, reference_seeds: int) -> list[Trial]:
    return [
        Trial(function, method, seed)
        for function in FUNCTIONS
        for methods, count in ((SEARCHES, seeds), (REFERENCES, reference_seeds))
        for method in methods
        for seed in range(count)
    ]


def summarise(trials: list[Trial], seeds: int) -> list[dict[str, object]]:
    """Median true value and share of won seeds, of every method that ran on the first seeds."""
    rows: list[dict[str, object]] = []
    for function in FUNCTIONS:
        values = {
            method: [t.value for t in trials if (t.function, t.method) == (function, method)]
            for method in SEARCHES | REFERENCES
        }
        random = np.array(values["random search"][:seeds])
        for method, all_values in values.items():
            own = np.array(all_values[:seeds])
            if own.size == random.size:
                won = None if method == "random search" else float(np.mean(own < random))
                median = float(np.median(own))
                rows.append({"function": function, "method": method, "median": median, "won": won})
    return rows


def as_markdown(rows: list[dict[str, object]], seeds: int) -> str:
    lines = [
        f"| function, {seeds} seeds | method | median true value | seeds won against random |",
        "|---|---|---|---|",
    ]
    for row in rows:
        won = "" if row["won"] is None else f"{row['won']:.1%}"
        lines.append(f"| {row['function']} | {row['method']} | {row['median']:.4f} | {won} |")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1))
@click.option(
    "--reference-seeds",
    default=40,
    show_default=True,
    type=click.IntRange(0),
    help="Seeds of CMA-ES and TPE, the first ones of all.",
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the values here.")
def main(seeds: int, reference_seeds: int, workers: int, json_path: Path | None) -> None:
    """Compare BioTune with other searches on functions shaped like fine-tuning.

    \b
    Examples:
      python benchmarks/optimizer.py
      python benchmarks/optimizer.py --seeds 20 --reference-seeds 0
      python benchmarks/optimizer.py --workers 4 --json optimizer.json
    """
    started = time.perf_counter()
    planned = plan_trials(seeds, min(reference_seeds, seeds))
    with ProcessPoolExecutor(workers) as pool:
        trials = list(pool.map(run, planned, chunksize=5))
    tables = [seeds]
    if 0 < reference_seeds < seeds:
        tables.append(reference_seeds)
    for count in tables:
        click.echo(as_markdown(summarise(trials, count), count) + "\n")
    click.echo(f"{BUDGET} evaluations each; {time.perf_counter() - started:.0f} s in all")
    if json_path is not None:
        summary = {str(count): summarise(trials, count) for count in tables}
        content = {"budget": BUDGET, "summary": summary, "trials": [vars(t) for t in trials]}
        json_path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
