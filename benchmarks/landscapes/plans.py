"""Which runs a landscape is recorded of, in an order that serves a recording cut short, too.

All is a function of the blocks, the arguments and what is recorded so far, whatever the number of
workers: plans that depend on results are decided once all of these are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from biotune.data.division import AS_PREPARED, Division
from biotune.evolution.genome import Genome, decode, encode
from biotune.evolution.initial import SCAN_RATE
from biotune.evolution.operators import crossover, exploit, mutate
from biotune.evolution.recipes import recipe_grid
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan

SCAN_RATES = (SCAN_RATE, 1.0, 10.0)
COMBINED = 4
"""So many of the best single blocks are combined, in pairs and triples."""
NEIGHBOURS, GOOD = 20, 10
"""So many plans a wave are bred from the so many best that are recorded."""
EXTINCTION = 0.3
"""How far a bred plan is from its parents: the paper's ē of fairly good ones."""

Kinds = dict[FineTunePlan, str]
"""Plan → its kind: ``uniform``, ``scan:…``, ``recipe:…``, ``combination`` or ``neighbour``."""
Curves = Mapping[FineTunePlan, LearningCurve]


@dataclass(frozen=True)
class Run:
    """One training to record, and what kind of plan it trains."""

    kind: str
    task: TrainingTask


@dataclass(frozen=True)
class Landscape:
    """What is to be recorded.

    Attributes:
        blocks: of the network in forward order, the head last.
        settings: of every run.
        uniform: number of plans of random genomes.
        waves: how often neighbours of the best plans so far are bred.
    """

    blocks: tuple[str, ...]
    settings: TrainingSettings
    uniform: int = 40
    waves: int = 2

    def runs(self, recorded: Mapping[TrainingTask, LearningCurve]) -> tuple[list[Run], int]:
        """All runs whose plans are decided, in order, and about how many more there will be."""
        first = {task.plan: c for task, c in recorded.items() if task == self._task(task.plan)}
        placed: list[tuple[float, Run]] = []
        later = 0
        for begin, end, plans, expected in self._lists(first):
            if plans is None:
                later += sum(1 + len(_repeats(index)) for index in range(expected))
                continue
            for index, (plan, kind) in enumerate(plans.items()):
                tasks = [self._task(plan), *(self._task(plan, *r) for r in _repeats(index))]
                place = begin + (end - begin) * (index + 0.5) / len(plans)
                step = (1 - place) / len(tasks)  # repetitions are spread over what follows
                placed += [(place + n * step, Run(kind, task)) for n, task in enumerate(tasks)]
        return [run for _, run in sorted(placed, key=lambda item: item[0])], later

    def _task(
        self, plan: FineTunePlan, seed: int = 0, division: Division = AS_PREPARED
    ) -> TrainingTask:
        return TrainingTask(plan, seed, self.settings, division)

    def _lists(self, first: Curves) -> Iterator[tuple[float, float, Kinds | None, int]]:
        """Begin and end as shares of the recording, plans, and about how many, of each list.

        Plans are None while what decides them is not recorded. No plan is in two lists.
        """
        scan, recipes, uniform = _scan(self.blocks), self._recipes(), self._uniform()
        seen = {**recipes, **scan}
        yield 0.0, 0.3, scan, len(scan)
        yield 0.0, 0.3, {plan: recipes[plan] for plan in recipes if plan not in scan}, len(recipes)
        yield 0.0, 1.0, uniform, len(uniform)
        combined: Kinds | None = None
        if scan.keys() <= first.keys():
            combined = dict.fromkeys(_combinations(self.blocks, first), "combination")
            combined = {plan: kind for plan, kind in combined.items() if plan not in seen}
            seen |= combined
        yield 0.3, 0.5, combined, 4 * COMBINED
        step = 0.4 / max(self.waves, 1)
        for wave in range(self.waves):
            bred: Kinds | None = None
            if combined is not None and seen.keys() <= first.keys():
                bred = self._neighbours(wave, {plan: first[plan] for plan in seen}, uniform)
                seen |= bred
            yield 0.5 + step * wave, 0.5 + step * (wave + 1), bred, NEIGHBOURS
            combined = bred  # a wave waits for the one before

    def _recipes(self) -> Kinds:
        """What a practitioner would try, tuned as a practitioner would tune it."""
        grid = recipe_grid(self.blocks)
        return {decode(recipe.genome, self.blocks): f"recipe:{recipe.name}" for recipe in grid}

    def _uniform(self) -> Kinds:
        rng = np.random.default_rng(0)
        plans: Kinds = {}
        while len(plans) < self.uniform:
            genome = Genome.random_viable(rng, len(self.blocks))
            plans[decode(genome, self.blocks)] = "uniform"
        return plans

    def _neighbours(self, wave: int, scored: Curves, uniform: Kinds) -> Kinds:
        """Children and exploitation steps, in turn, of the best plans: what searches visit."""
        rng = np.random.default_rng([wave, 1])
        still = np.zeros(len(self.blocks) + 1)
        good = []
        for plan in _best_first(scored, scored)[:GOOD]:
            rates = {i: rate for i, rate in enumerate(plan.values()) if rate is not None}
            good.append(encode(rates, len(plan)))
        plans: Kinds = {}
        while len(plans) < NEIGHBOURS:
            first, second = (good[i] for i in rng.choice(len(good), 2, replace=False))
            if len(plans) % 2:
                genome = exploit(first, "evolved", rng)[0]
            else:
                child, _ = crossover(first.genes, second.genes, still, still, rng)
                genome = Genome.from_genes(np.clip(mutate(child, EXTINCTION, rng), 0, 1))
            plan = decode(genome, self.blocks)
            if genome.is_viable() and plan not in scored and plan not in uniform:
                plans[plan] = "neighbour"
        return plans


def _repeats(index: int) -> list[tuple[int, Division]]:
    """Seed and division of a list's n-th plan beside the first: of each tenth four seeds more, of
    each twentieth four divisions of the images, too."""
    seeds = [(seed, AS_PREPARED) for seed in range(1, 5) if index % 10 == 0]
    divisions = [(0, Division(resampled=seed)) for seed in range(1, 5) if index % 20 == 0]
    return seeds + divisions


def _scan(blocks: Sequence[str]) -> Kinds:
    """Each block alone at each rate."""
    return {
        _plan(blocks, {i: rate}): f"scan:{block}"
        for rate in SCAN_RATES
        for i, block in enumerate(blocks)
    }


def _combinations(blocks: Sequence[str], first: Curves) -> list[FineTunePlan]:
    """Pairs and triples of the best single blocks but the head, each block at its own best rate,
    and all at the scan's."""
    singles = {_plan(blocks, {i: r}): (i, r) for r in SCAN_RATES for i in range(len(blocks) - 1)}
    rate_of: dict[int, float] = {}
    for plan in _best_first(singles, first):
        rate_of.setdefault(*singles[plan])
    best = list(rate_of)[:COMBINED]
    return [
        _plan(blocks, rates)
        for together in (*combinations(best, 2), *combinations(best, 3))
        for rates in ({i: rate_of[i] for i in together}, dict.fromkeys(together, SCAN_RATE))
    ]


def _best_first(plans: Iterable[FineTunePlan], curves: Curves) -> list[FineTunePlan]:
    def rank(plan: FineTunePlan) -> tuple[bool, float, float]:
        curve = curves[plan]
        if curve.outcome != "finished":
            return True, 0.0, 0.0
        best = curve.best_epoch
        return False, -curve.validation_score[best], curve.validation_brier[best]

    return sorted(plans, key=rank)


def _plan(blocks: Sequence[str], rates: Mapping[int, float]) -> FineTunePlan:
    """A plan in the three digits that a genome's plans have."""
    return decode(encode(rates, len(blocks)), blocks)
