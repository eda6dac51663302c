"""Whole searches to be compared on recorded landscapes, each from nothing to a confirmed winner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.comparison.arms import TODAY_ELITES, TODAY_POPULATION, TODAY_TOP
from benchmarks.earlier import confirmation as earlier_confirmation
from benchmarks.earlier import racing as earlier
from benchmarks.landscapes.simulator import SimulatedRuns
from benchmarks.rivals import BATCH, SAMPLERS, Rival
from biotune.evolution import BioTune, Screening
from biotune.evolution.protocol import Optimizer
from biotune.plan import FineTunePlan
from pipeline.evolving.confirmation import Confirmation, confirm, contenders
from pipeline.evolving.loop import (
    EvaluatedCandidate,
    SearchResult,
    evolve,
    new_search,
    search_result,
)
from pipeline.params import SearchParams
from pipeline.trials.machine import training_settings

ENDLESS: Final = 1000
"""Generations that no budget is enough for."""

Method = Callable[[SearchParams, Sequence[str], SimulatedRuns, float], tuple[SearchResult, float]]
"""From the ``search`` section (its seed is the replicate's), the blocks, the runs and CPU seconds
that evolution may take to what was found, and the CPU seconds that evolution took. The screened
search takes what it takes."""


def searched(
    optimizer: Optimizer, section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns
) -> tuple[SearchResult, float]:
    """What the search stage does with an optimizer."""
    evaluated = list(evolve(optimizer, section, runs))
    seconds = runs.workers.cpu_seconds
    confirmed = list(confirm(contenders(optimizer, section, blocks), section, runs))
    return search_result(evaluated, confirmed), seconds


def screened(settings: Mapping[str, Any] | None = None, **options: object) -> Method:
    """The search as ``params.yaml`` describes it, with these values of the section instead.

    Args:
        settings: of the screening, instead of its own.
    """

    def search(
        section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns, seconds: float
    ) -> tuple[SearchResult, float]:
        changed = section.model_copy(update=options)
        optimizer = new_search(changed, blocks)
        if settings is not None:
            optimizer.screening = Screening(**settings)
        return searched(optimizer, changed, blocks, runs)

    return search


def today(generations: int) -> Method:
    """The search of commit 4af523c, until its generations are over or the budget is spent."""

    def search(
        section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns, seconds: float
    ) -> tuple[SearchResult, float]:
        settings = training_settings(section)
        optimizer = BioTune(
            blocks,
            population=TODAY_POPULATION,
            elites=TODAY_ELITES,
            generations=generations,
            seed=section.seed,
            surgical_scan=True,
        )
        plenty = generations < ENDLESS
        told = earlier.evolve(
            optimizer, 0, settings, runs, lambda: plenty or runs.workers.cpu_seconds < seconds
        )
        by_id = sorted(told, key=lambda candidate: candidate.id)
        first: dict[FineTunePlan, int] = {}
        evaluated = [
            EvaluatedCandidate(
                c, (), None if first.setdefault(c.plan, c.id) == c.id else first[c.plan]
            )
            for c in by_id
        ]
        spent = runs.workers.cpu_seconds
        fresh = range(1, 1 + earlier_confirmation.CONFIRMATION_SEEDS)
        winner, recipe = earlier_confirmation.confirm(optimizer, TODAY_TOP, settings, fresh, runs)
        confirmed = [
            Confirmation(c.name, c.plan, c.candidate, c.recipe, c.evaluation, tuple(c.runs))
            for c in ([recipe] if winner is recipe else [winner, recipe])
        ]
        return search_result(evaluated, confirmed), spent

    return search


def rival(name: str) -> Method:
    """A rival that spends the same CPU seconds, and is confirmed in the same way."""

    def search(
        section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns, seconds: float
    ) -> tuple[SearchResult, float]:
        def over() -> bool:
            """Whether the budget is nearer than it would be after another batch."""
            spent, done = runs.workers.cpu_seconds, runs.workers.runs
            return spent + 0.5 * BATCH * spent / done >= seconds

        sampler = SAMPLERS[name](len(blocks), section.seed)
        optimizer = Rival(
            name,
            sampler,
            blocks,
            recipes_first=section.population // 2,
            over=over,
        )
        return searched(optimizer, section, blocks, runs)

    return search


REFERENCE = "screened"
"""The method that gives all others their budget, and that they are compared with."""

METHODS: dict[str, Method] = {
    REFERENCE: screened(),
    "today": today(ENDLESS),
    **{name: rival(name) for name in SAMPLERS},
    "today, 3 generations": today(3),
    "screened, nobody stopped": screened(racing=False),
    "screened, 3 generations": screened(generations=3),
    "screened, ranked by the model": screened({"ranks": True}),
    "screened, κ = 2": screened({"optimism": 2.0}),
    "screened, 40 bred for each place": screened({"proposals": 40}),
    "not screened": screened(screening=False),
}
"""By name; the second and the rivals have the reference's CPU seconds, the others take what they
take."""
