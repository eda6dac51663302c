"""What the optimizer hands out to be scored, and what it remembers of those scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from biotune.evolution.selection import extinction_factors

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from biotune.evolution.genome import Genome
    from biotune.plan import Evaluation, FineTunePlan


Role = Literal["score", "rescore", "trial"]
"""What a score is for: to rank a new genome, to rank an elite again on another fold, or to see
whether a step from an elite beats it."""


@dataclass(frozen=True)
class Candidate:
    """A genome to be scored on one fold, and its evaluation once it is told.

    Attributes:
        id: counts the candidates of a search in order of creation, from 0.
        genome: its genes.
        plan: what the genome decodes to; this is what training needs.
        origin: ``random``, ``recipe:NAME``, ``scan:BLOCK`` (that block alone), ``combination`` (of
            the scan's best blocks), ``exploitation``, ``rescore``, ``offspring`` or ``newcomer``
            (a fresh random genome in the place of a child).
        parents: ids of the candidates that it came from: two for offspring, the elite for
            exploitation and rescore, the scans of its blocks for a combination, none for the
            others.
        generation: 0 for the initial population.
        fold: the data fold to train and validate on, ``generation`` modulo the number of folds.
        role: what it is scored for; see :data:`Role`.
        evaluation: None until told.
    """

    id: int
    genome: Genome
    plan: FineTunePlan
    origin: str
    parents: tuple[int, ...]
    generation: int
    fold: int
    role: Role = "score"
    evaluation: Evaluation | None = None

    @property
    def recipe(self) -> str | None:
        """Name of the recipe that this candidate is, or None.

        One block alone is a recipe, too, which a person could run without any search.
        """
        kind, _, name = self.origin.partition(":")
        if kind == "scan":
            return f"{name} alone {self.plan[name]:g}x"
        return name if kind == "recipe" else None

    @property
    def fitness(self) -> float:
        """The told fitness; lower is better.

        Raises:
            ValueError: if the candidate was not told yet.
        """
        return self._told.fitness

    @property
    def finished(self) -> bool:
        """Whether the told evaluation is a score.

        Raises:
            ValueError: if the candidate was not told yet.
        """
        return self._told.outcome == "finished"

    @property
    def failed(self) -> bool:
        """Whether training it came to no result at all: diverged, or out of memory.

        Raises:
            ValueError: if the candidate was not told yet.
        """
        return self._told.failed

    @property
    def rank_key(self) -> tuple[bool, float, float, float, int]:
        """Sorts the best first: by :attr:`Evaluation.rank_key`, then the older candidate.

        Raises:
            ValueError: if the candidate was not told yet.
        """
        return (*self._told.rank_key, self.id)

    def beats(self, other: Candidate) -> bool:
        """Whether this candidate is better than another, not merely as good.

        Raises:
            ValueError: if one of the two was not told yet.
        """
        return self._told.rank_key < other._told.rank_key

    @property
    def _told(self) -> Evaluation:
        if self.evaluation is None:
            raise ValueError(f"candidate {self.id} has no fitness yet; tell it first")
        return self.evaluation


@dataclass(frozen=True)
class Individual:
    """A candidate as a member of the population.

    Attributes:
        candidate: its genome and, once told, its evaluation.
        momentum: where its line has been heading, shape [B+2].
        extinction: its extinction factor at the last ranking, in [0, 1].
    """

    candidate: Candidate
    momentum: NDArray[np.float64]
    extinction: float = 0.0

    def succeeded_by(self, candidate: Candidate) -> Individual:
        """The same individual with another candidate's genome and score."""
        return replace(self, candidate=candidate)


def by_rank(individuals: Iterable[Individual]) -> list[Individual]:
    """The individuals, best first."""
    return sorted(individuals, key=lambda individual: individual.candidate.rank_key)


def ranked_population(individuals: Iterable[Individual]) -> list[Individual]:
    """The individuals, best first, with their new extinction factors."""
    population = by_rank(individuals)
    evaluations = [individual.candidate.evaluation for individual in population]
    factors = extinction_factors([e for e in evaluations if e is not None])
    return [
        replace(individual, extinction=float(factor))
        for individual, factor in zip(population, factors, strict=True)
    ]
