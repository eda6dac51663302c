"""Who was ranked last, who has children now, and who will be ranked next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from biotune.evolution.candidate import by_rank, ranked_population
from biotune.evolution.elites import survivors
from biotune.evolution.reproduction import without_beaten_parents
from biotune.evolution.screening import judged_members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from biotune.evolution.candidate import Individual
    from biotune.evolution.screening import Screen


class Population:
    """The individuals of a search, from one ranking to the next.

    Args:
        size: N, individuals in a ranking.
        elites: E, how many of a ranking are exploited, and survive.
        rescoring: whether each generation scores its elites anew, on a fold of its own.

    Attributes:
        ranking: the last complete generation, best first; empty before the first.
        mating_pool: who may have children now, best first.
    """

    def __init__(self, size: int, elites: int, *, rescoring: bool) -> None:
        self.ranking: list[Individual] = []
        self.mating_pool: list[Individual] = []
        self._size = size
        self._elites = elites
        self._rescoring = rescoring
        self._successors: list[Individual] = []  # of this generation, as far as it is told

    @property
    def missing(self) -> int:
        """How many individuals the next ranking still lacks."""
        return self._size - len(self._successors)

    def elites(self, *, renewed: bool = False) -> list[Individual]:
        """The elites of the last ranking; renewed, those that came out of their exploitation."""
        return (self._successors if renewed else self.ranking)[: self._elites]

    def select_survivors(self, trials: Sequence[Individual], screen: Screen) -> None:
        """Begin the next ranking with the elites that survive, and fill the mating pool."""
        ranking = judged_members(self.ranking, screen)
        elites, others = ranking[: self._elites], ranking[self._elites :]
        self._successors = survivors(elites, trials, rescored=self._rescoring)
        # After a change of fold, the survivors' scores are not comparable with the others': the
        # pool keeps the order of the old fold, which all of them shared.
        pool = self._successors + others
        self.mating_pool = pool if self._rescoring else by_rank(pool)

    def add(self, born: Sequence[Individual], screen: Screen, *, beat_parents: bool) -> None:
        """Give told individuals places in the next ranking.

        Args:
            born: the initial population, or children; judged.
            screen: judges their parents, too, by what is told now.
            beat_parents: whether parents that are worse than their child have no further children.
        """
        self._successors = [*self._successors, *born]
        if beat_parents:
            self.mating_pool = judged_members(self.mating_pool, screen)
            for child in born:
                self.mating_pool = without_beaten_parents(
                    self.mating_pool, child, same_fold=self._rescoring
                )

    def rank(self, screen: Screen, *, rivals: Sequence[Individual]) -> None:
        """Make the ranking of the complete generation.

        Args:
            screen: judges.
            rivals: other told individuals that compete for the places.
        """
        members = self._successors
        if rivals:
            members = by_rank(members + judged_members(rivals, screen))[: self._size]
        self.ranking = ranked_population(judged_members(members, screen))
