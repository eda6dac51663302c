"""Whole searches to be compared on recorded landscapes, each from nothing to a confirmed winner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.landscapes.simulator import SimulatedRuns
from benchmarks.rivals import BATCH, SAMPLERS, Rival
from biotune.evolution.protocol import Optimizer
from pipeline.evolving.confirmation import confirm, contenders
from pipeline.evolving.loop import SearchResult, evolve, new_search, search_result
from pipeline.params import SearchParams

Method = Callable[[SearchParams, Sequence[str], SimulatedRuns, float], SearchResult]
"""From the ``search`` section (its seed is the replicate's), the blocks, the runs and CPU seconds
that evolution may take to what was found; BioTune's methods take what they take."""


def searched(
    optimizer: Optimizer, section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns
) -> SearchResult:
    """What the search stage does with an optimizer."""
    evaluated = list(evolve(optimizer, section, runs))
    confirmed = list(confirm(contenders(optimizer, section, blocks), section, runs))
    return search_result(evaluated, confirmed)


def biotune(**options: object) -> Method:
    """The search as ``params.yaml`` describes it, with these values of the section instead."""

    def search(
        section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns, seconds: float
    ) -> SearchResult:
        changed = section.model_copy(update=options)
        return searched(new_search(changed, blocks), changed, blocks, runs)

    return search


def rival(name: str) -> Method:
    """A rival that spends the same CPU seconds, and is confirmed in the same way."""

    def search(
        section: SearchParams, blocks: Sequence[str], runs: SimulatedRuns, seconds: float
    ) -> SearchResult:
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


REFERENCE = "today"
"""The method that gives all others their budget, and that they are compared with."""

METHODS: dict[str, Method] = {
    REFERENCE: biotune(),
    "full": biotune(racing=False),
    **{name: rival(name) for name in SAMPLERS},
}
