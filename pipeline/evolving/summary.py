"""What a search's evolution came to: where the winner came from, whom it bred, what is left."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from biotune.evolution.candidate import Candidate
from biotune.evolution.optimizer import BioTune
from biotune.plan import FineTunePlan
from pipeline.evolving.loop import SearchResult

BRED = {"exploitation": "exploitation", "offspring": "reproduction"}
"""Origin of a bred candidate → the operator that made it."""


@dataclass(frozen=True, kw_only=True)
class EvolutionSummary:
    """Figures of ``artifacts/search/metrics.json``, under their names there.

    Attributes:
        winner_origin: see :func:`winner_origin`.
        winner_generation: in which the winner's plan was first asked for; 0 if it never was.
        bred: plans that the operators made of others, and that were not told before.
        bred_elites: those of them that were an elite when a generation was ranked.
        expected_gain_left: what the model expects of the best plan that was not trained, beyond
            the best that was, in validation score; None without a model.
    """

    winner_origin: str
    winner_generation: int
    bred: int
    bred_elites: int
    expected_gain_left: float | None

    def lines(self) -> tuple[str, str, str]:
        """The same for people, a sentence each."""
        gain = self.expected_gain_left
        return (
            f"Where the winner came from: {self.winner_origin}.",
            f"Bred: {self.bred} candidates; elites among them: {self.bred_elites}.",
            "Left to gain: unknown, because search.screening is off."
            if gain is None
            else f"Left to gain: {_points(gain)}, expected of the best plan that was not trained.",
        )


def evolution_summary(search: BioTune, result: SearchResult) -> EvolutionSummary:
    """What a search that is done came to.

    Args:
        search: with all candidates told.
        result: of the same search.
    """
    first = first_with(result.winner.plan, search.history)
    bred, bred_elites = count_bred(search.history, search.elite_ids)
    return EvolutionSummary(
        winner_origin=winner_origin(result.winner.name, first, search.history),
        winner_generation=first.generation if first else 0,
        bred=bred,
        bred_elites=bred_elites,
        expected_gain_left=search.expected_gain,
    )


def first_with(plan: FineTunePlan, candidates: Sequence[Candidate]) -> Candidate | None:
    """Who brought a plan into the search: a later candidate with it, or a rescored elite, did not.

    None if nobody has it.
    """
    with_plan = [candidate for candidate in candidates if candidate.plan == plan]
    return min(with_plan, key=lambda candidate: candidate.id, default=None)


def winner_origin(name: str, first: Candidate | None, candidates: Sequence[Candidate]) -> str:
    """Where a winner came from, as part of a sentence.

    Args:
        name: the winner's, for a recipe that the search did not try.
        first: who brought its plan into the search.
        candidates: all of the search, so that parents can be named with their own origins.
    """
    if first is None:
        return f"recipe {name}, not tried in the search"
    kind = first.origin.partition(":")[0]
    if kind == "recipe":
        later = f", tried in generation {first.generation}" if first.generation else ""
        return f"recipe {first.recipe}{later}"
    if kind == "scan":
        return f"scan, {first.recipe}"
    if not first.parents:
        return f"{kind} in generation {first.generation}"
    parents = _named(first.parents, candidates)
    if kind == "combination":
        return f"combination of {parents}"
    return f"bred in generation {first.generation}, of {parents}, by {BRED[kind]}"


def count_bred(candidates: Sequence[Candidate], elite_ids: Collection[int]) -> tuple[int, int]:
    """How many plans were bred, and how many of these became elites; see :class:`EvolutionSummary`.

    Args:
        candidates: all of a search.
        elite_ids: of those that were an elite when a generation was ranked.
    """
    first: dict[FineTunePlan, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.id):
        first.setdefault(candidate.plan, candidate)
    bred = {plan for plan, candidate in first.items() if candidate.origin in BRED}
    return len(bred), len(bred & {c.plan for c in candidates if c.id in elite_ids})


def early_end(search: BioTune) -> str | None:
    """Why a search that is done ended before its last generation; None if it did not."""
    if search.generation == search.generations or not search.screening:
        return None
    return (
        f"ended after generation {search.generation} of {search.generations}: the model expects "
        f"at most {_points(search.expected_gain or 0.0)} more from a plan that was not trained "
        f"(search.min_expected_gain {search.screening.min_expected_gain:g})"
    )


def _named(ids: Sequence[int], candidates: Sequence[Candidate]) -> str:
    """Such as ``candidates 7 (scan:stem) and 12 (offspring)``."""
    origins = {candidate.id: candidate.origin for candidate in candidates}
    names = [f"{number} ({origins[number]})" for number in ids]
    *others, last = names
    return f"candidates {', '.join(others)} and {last}" if others else f"candidate {last}"


def _points(gain: float) -> str:
    return f"{100 * gain:.2f} points"
