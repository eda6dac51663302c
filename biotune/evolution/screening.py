"""Which proposals of the operators are trained, and how good trained plans are expected to be.

Training a plan takes seconds to hours, breeding one microseconds. So many are bred for each place,
and a model of all scores so far chooses: pre-selection by a surrogate (Jin 2011, doi
10.1016/j.swevo.2011.05.001), by a lower confidence bound (Emmerich et al. 2006, doi
10.1109/TEVC.2005.859463). The model can rank, too: a plan then counts as what is expected of it,
given its own score and those of its neighbours. On recorded landscapes that helped no search that
confirms several plans by fresh seeds: those that a model ranks first are much alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from biotune.evolution.checks import check_at_least, check_not_negative
from biotune.evolution.plan_model import DECIMALS, PlanModel, expected_gain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from biotune.evolution.candidate import Candidate, Individual
    from biotune.plan import FineTunePlan


@dataclass(frozen=True)
class Screening:
    """How many are bred, and which of them are trained; ``benchmarks/optimizer.py`` has figures.

    Attributes:
        proposals: children that are bred for each place, and steps that are tried from each elite;
            at least 2.
        optimism: κ, standard deviations by which a plan may be better than expected when it is
            chosen; at least 0.
        ranks: whether the model ranks, or each plan stands by its own score.
        min_expected_gain: end after a generation when the model expects to gain less than this
            from the best plan that is not scored yet, in fitness. 0: never.

    Raises:
        ValueError: for settings outside these ranges.
    """

    proposals: int = 100
    optimism: float = 1.0
    ranks: bool = False
    min_expected_gain: float = 0.0

    def __post_init__(self) -> None:
        check_at_least("proposals", self.proposals, 2)
        check_not_negative("optimism", self.optimism)
        check_not_negative("min_expected_gain", self.min_expected_gain)


class Screen(Protocol):
    """Chooses which proposals are trained, and judges those that were."""

    @property
    def proposals(self) -> int:
        """How many are to be bred for each place."""
        ...

    def choose(self, proposals: Sequence[FineTunePlan], count: int) -> list[int]:
        """Indices of this many proposals, at most; the first choice first."""
        ...

    def judged(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Told candidates, each with the fitness by which it is ranked."""
        ...

    def expected_gain(self, proposals: Iterable[FineTunePlan]) -> float | None:
        """How much better than the best so far the best of these is expected to be, in fitness;
        None if nobody can say."""
        ...


class NoScreen:
    """As published: whatever is bred is trained, and a score is what it is."""

    proposals = 1

    def choose(self, proposals: Sequence[FineTunePlan], count: int) -> list[int]:
        """The first proposals, in their order."""
        return list(range(len(proposals)))[:count]

    def judged(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates as they were told."""
        return list(candidates)

    def expected_gain(self, proposals: Iterable[FineTunePlan]) -> None:
        """None: nothing is known of plans that were not trained."""


class ModelScreen:
    """Chooses and judges by a model of the scores so far.

    Args:
        settings: of the search.
        candidates: all of a search; at least one of them has a result, see :func:`has_result`.
    """

    def __init__(self, settings: Screening, candidates: Iterable[Candidate]) -> None:
        self._settings = settings
        asked = list(candidates)
        self._told = [candidate for candidate in asked if candidate.evaluation is not None]
        self._taken = {candidate.plan for candidate in asked}
        self._believed: PlanModel | None = None  # as if the plans that were chosen had been told

    @cached_property
    def _model(self) -> PlanModel:
        """Fitted when first asked: not all who judge by their own scores need it."""
        told = self._told
        worst = max(candidate.fitness for candidate in told if has_result(candidate))
        return PlanModel.fit(
            [candidate.plan for candidate in told],
            [candidate.fitness if has_result(candidate) else worst for candidate in told],
            [candidate.fold for candidate in told],
        )

    @property
    def proposals(self) -> int:
        """See :class:`Screening`."""
        return self._settings.proposals

    def choose(self, proposals: Sequence[FineTunePlan], count: int) -> list[int]:
        """Indices of the proposals with the lowest mean − κ·sd, no two of them alike.

        Plans that the search has asked for before come after all others. Of equals the first.
        """
        left = list(range(len(proposals)))
        chosen: list[int] = []
        while left and len(chosen) < count:
            believed = self._believed or self._model
            mean, deviation = believed.predict([proposals[index] for index in left])
            bounds = np.round(mean - self._settings.optimism * deviation, DECIMALS).tolist()
            taken = [proposals[index] in self._taken for index in left]
            index = min(zip(taken, bounds, left, strict=True))[-1]
            left.remove(index)
            chosen.append(index)
            self._taken.add(proposals[index])
            self._believed = believed.believing(proposals[index])
        return chosen

    def judged(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Told candidates with the fitness that the model expects of their plans; failed ones, and
        all if the model does not rank, as they are."""
        told = list(candidates)
        if not told or not self._settings.ranks:
            return told
        means, _ = self._model.predict([candidate.plan for candidate in told])
        return [
            candidate
            if candidate.evaluation is None or not has_result(candidate)
            else replace(
                candidate,
                evaluation=replace(candidate.evaluation, fitness=round(mean, DECIMALS)),
            )
            for candidate, mean in zip(told, means.tolist(), strict=True)
        ]

    def expected_gain(self, proposals: Iterable[FineTunePlan]) -> float | None:
        """By how much the best of these plans is expected to beat the best finished one.

        None before any has finished. Plans that the search has asked for before gain nothing.
        """
        finished = [candidate.plan for candidate in self._told if candidate.finished]
        if not finished:
            return None
        best = float(self._model.predict(finished)[0].min())
        new = [plan for plan in proposals if plan not in self._taken]
        gains = expected_gain(best, *self._model.predict(new)).tolist() if new else []
        return round(max(gains, default=0.0), DECIMALS)


def has_result(candidate: Candidate) -> bool:
    """Whether a candidate was told, and has a score or an estimate of it."""
    return candidate.evaluation is not None and candidate.evaluation.has_result


def screen_of(settings: Screening | None, candidates: Iterable[Candidate]) -> Screen:
    """A screen that knows what these candidates of a search were told.

    As published without settings, and before there is any result.
    """
    asked = list(candidates)
    if settings is None or not any(map(has_result, asked)):
        return NoScreen()
    return ModelScreen(settings, asked)


def judged_members(members: Sequence[Individual], screen: Screen) -> list[Individual]:
    """Told individuals, each with the fitness by which it is ranked."""
    judged = screen.judged(member.candidate for member in members)
    return [
        member.succeeded_by(candidate) for member, candidate in zip(members, judged, strict=True)
    ]
