"""What a search asks of an optimizer: BioTune, a rival of it, or yours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from biotune.evolution.candidate import Candidate
    from biotune.plan import Evaluation


class Optimizer(Protocol):
    """Proposes fine-tuning plans and is told how they did; it never evaluates.

    All that it proposes is a function of its arguments and of what it was told, and does not depend
    on the order in which a batch is told.
    """

    @property
    def done(self) -> bool:
        """Whether nothing more will be asked for."""
        ...

    @property
    def planned_evaluations(self) -> int:
        """How many candidates a whole search asks for, at most."""
        ...

    def ask(self) -> list[Candidate]:
        """Every candidate that may be scored now and is not told yet; the same until told."""
        ...

    def tell(self, candidate: Candidate, fitness: float | Evaluation) -> Candidate:
        """Report how a candidate did; lower is better. The candidate with its evaluation."""
        ...

    @property
    def standing_elites(self) -> list[Candidate]:
        """Told candidates, best first, that those asked for now must beat to change anything; none
        while there is nothing to compare them with."""
        ...

    @property
    def history(self) -> list[Candidate]:
        """All candidates told so far, in the order of their ids."""
        ...

    @property
    def ranked(self) -> list[Candidate]:
        """The told candidates that may be compared, best first; failed and stopped ones last."""
        ...

    @property
    def best(self) -> Candidate:
        """The first of :attr:`ranked`."""
        ...
