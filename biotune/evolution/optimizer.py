"""The evolutionary search over fine-tuning plans, as ask and tell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from biotune.evolution.candidate import Candidate, Individual, Role, by_rank
from biotune.evolution.checks import check_at_least, check_blocks, check_fitness, check_one_of
from biotune.evolution.elites import elite_trials
from biotune.evolution.genome import HEAD_MODES, Genome, HeadMode, decode
from biotune.evolution.initial import Founder, initial_population, single_blocks
from biotune.evolution.population import Population
from biotune.evolution.proposals import outlook, propose_child, recipe_proposals
from biotune.evolution.screening import Screen, Screening, judged_members, screen_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from biotune.evolution.reproduction import Child
    from biotune.plan import Evaluation

ReproductionMode = Literal["batch", "sequential"]
"""``batch``: all children of a generation are asked for at once.
``sequential``: one at a time, and a parent that is worse than its child has no further children,
as published."""


class BioTune:
    """Evolves which blocks to freeze and how fast the others learn (Davila et al., IEEE Access 13,
    2025, doi 10.1109/ACCESS.2025.3587524).

    The optimizer never evaluates: :meth:`ask` for candidates, score their plans as you like, and
    :meth:`tell` the results. All it does is a function of its arguments and of the fitness told
    for each candidate. The order in which candidates are told does not matter.

    Args:
        blocks: names of the network's blocks in forward order, the classifier head last.
        population: N, individuals in a generation; at least 2.
        generations: G, generations after the initial population.
        elites: E, individuals that survive a generation and are exploited; 1 to N−1.
        seed: of the one random generator.
        folds: N_F, data folds; generation g is scored on fold g modulo N_F.
        head: see :data:`~biotune.evolution.genome.HeadMode`.
        seed_recipes: open the initial population with known recipes, up to half of it.
        rescore_elites: with several folds, score the elites again on the new fold, so that scores
            of different folds are never compared.
        reproduction: see :data:`ReproductionMode`.
        surgical_scan: score each block alone before the initial population, which then holds the
            best blocks together; see :mod:`~biotune.evolution.initial`. B+1 further evaluations.
        screening: breed many for each place, and score those that a model of the scores so far
            finds promising; see :mod:`~biotune.evolution.screening`. With ``seed_recipes``,
            recipes that were not tried compete with the children. None: as published.

    Attributes:
        expected_gain: with ``screening``, after a complete generation: by how much the best plan
            that the next may breed is expected to beat the best so far, in fitness; else None.
        elite_ids: of all candidates that were among the elites when a generation was ranked.

    Raises:
        ValueError: for settings outside these ranges.

    >>> search = BioTune(["stem", "layer1", "head"], population=4, generations=2, elites=1)
    >>> while not search.done:
    ...     for candidate in search.ask():
    ...         search.tell(candidate, fitness=0.1 * len(candidate.plan.frozen_blocks))
    >>> search.best.fitness
    0.0
    """

    def __init__(
        self,
        blocks: Sequence[str],
        population: int = 10,
        generations: int = 10,
        elites: int = 3,
        seed: int = 0,
        folds: int = 1,
        head: HeadMode = "evolved",
        seed_recipes: bool = True,
        rescore_elites: bool = True,
        reproduction: ReproductionMode = "batch",
        surgical_scan: bool = False,
        screening: Screening | None = None,
    ) -> None:
        check_blocks(blocks)
        check_at_least("population", population, 2)
        check_at_least("generations", generations, 0)
        check_at_least("elites", elites, 1)
        if elites >= population:
            raise ValueError(f"elites must be fewer than the population {population}, got {elites}")
        check_at_least("seed", seed, 0)
        check_at_least("folds", folds, 1)
        check_one_of("head", head, HEAD_MODES)
        check_one_of("reproduction", reproduction, get_args(ReproductionMode))
        self.blocks = tuple(blocks)
        self.population = population
        self.generations = generations
        self.elites = elites
        self.seed = seed
        self.folds = folds
        self.head: HeadMode = head
        self.seed_recipes = seed_recipes
        self.rescore_elites = rescore_elites
        self.reproduction: ReproductionMode = reproduction
        self.surgical_scan = surgical_scan
        self.screening = screening
        self.expected_gain: float | None = None
        self.elite_ids: set[int] = set()

        self._rng = np.random.default_rng(seed)
        self._candidates: dict[int, Candidate] = {}
        self._generation = 0
        self._population = Population(population, elites, rescoring=self._rescoring)
        self._exploiting = False  # whether the batch is exploitation or reproduction
        self._scan: list[Individual] = []  # empty until it is told, or without one
        self._batch = (
            self._at_rest(single_blocks(self.blocks, head))
            if surgical_scan
            else self._initial_population()
        )

    @property
    def done(self) -> bool:
        """Whether every candidate of every generation is told."""
        return not self._batch

    @property
    def generation(self) -> int:
        """The generation that is being scored; the last one when done."""
        return self._generation

    @property
    def planned_evaluations(self) -> int:
        """How many candidates a whole search asks for: N + G·(2E + N − E), and G·E re-scorings,
        and B+1 for the surgical scan; at most, if it may end by ``screening.min_expected_gain``."""
        per_generation = self.elites + self.population
        if self._rescoring:
            per_generation += self.elites
        scan = len(self.blocks) if self.surgical_scan else 0
        return scan + self.population + self.generations * per_generation

    def ask(self) -> list[Candidate]:
        """Every candidate that may be scored now and is not told yet; the same until told."""
        return [member.candidate for member in self._batch if member.candidate.evaluation is None]

    def tell(self, candidate: Candidate, fitness: float | Evaluation) -> Candidate:
        """Report how a candidate did.

        Args:
            candidate: one that :meth:`ask` returned.
            fitness: a finite number, lower is better, such as 1 − validation score; or an
                :class:`~biotune.plan.Evaluation`, which can also say that a run failed. A failed
                or stopped run ranks after every finished one.

        Returns:
            The candidate with its evaluation.

        Raises:
            ValueError: for a candidate of another search, one that was told before, or a fitness
                that is not a finite number.
        """
        asked = self._candidates.get(candidate.id)
        if asked is None or replace(asked, evaluation=None) != replace(candidate, evaluation=None):
            raise ValueError(f"expected a candidate that this search asked for, got {candidate}")
        if asked.evaluation is not None:
            raise ValueError(
                f"candidate {asked.id} was told before: expected fitness "
                f"{asked.fitness} to stay, got {fitness}"
            )
        told = replace(asked, evaluation=check_fitness(asked.id, fitness))
        self._candidates[told.id] = told
        self._batch = [
            member.succeeded_by(told) if member.candidate.id == told.id else member
            for member in self._batch
        ]
        if not self.ask():
            self._advance()
        return told

    @property
    def standing_elites(self) -> list[Candidate]:
        """The elites that the candidates asked for now compete with.

        While the initial population is scored these are the best of the scan, and none while the
        scan is, or without one. With several folds, they may still have the score of another fold;
        see :attr:`Candidate.fold`. Where ``screening.ranks``, their fitness is what the model
        expects.
        """
        standing = self._population.elites(renewed=not self._exploiting)
        if not self._population.ranking:
            standing = by_rank(self._scan)[: self.elites]
        return [member.candidate for member in standing]

    @property
    def history(self) -> list[Candidate]:
        """Told candidates by id; scores of different folds do not compare, see :attr:`ranked`."""
        return [c for c in self._candidates.values() if c.evaluation is not None]

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates that may be compared, best first; failed and stopped runs come last.

        By their own scores, or where ``screening.ranks`` by what the model expects of them.
        With one fold these are all that were told. With several, they are those of the last
        generation that is told completely, because its scores share a fold (as published, without
        ``rescore_elites``, also its elites with their old scores); until there is one, those of
        the initial population.
        """
        told = self.history
        if self.folds > 1 and self._population.ranking:
            complete = self._generation if self.done else self._generation - 1
            survivors = {member.candidate.id for member in self._population.ranking}
            told = [c for c in told if c.generation == complete or c.id in survivors]
        screen = screen_of(self.screening, self._candidates.values())
        rank_of = {candidate.id: candidate.rank_key for candidate in screen.judged(told)}
        return sorted(told, key=lambda candidate: rank_of[candidate.id])

    @property
    def best(self) -> Candidate:
        """The first of :attr:`ranked`.

        Raises:
            ValueError: if no candidate was told yet.
        """
        ranked = self.ranked
        if not ranked:
            raise ValueError("expected at least one told candidate, got none; tell one first")
        return ranked[0]

    @property
    def _rescoring(self) -> bool:
        return self.folds > 1 and self.rescore_elites

    def _advance(self) -> None:
        """Take the next step, now that the whole batch is told."""
        screen = screen_of(self.screening, self._candidates.values())
        batch, self._batch = judged_members(self._batch, screen), []
        if self.surgical_scan and not self._scan:
            self._scan = batch
            self._batch = self._initial_population()
            return
        if self._exploiting:
            self._exploiting = False
            self._population.select_survivors(batch, screen)
        else:
            self._population.add(batch, screen, beat_parents=self.reproduction == "sequential")
        missing = self._population.missing
        if missing:
            asked = 1 if self.reproduction == "sequential" else missing
            self._batch = self._offspring(asked, screen)
            return
        # The scan's candidates compete for the places of the first generation.
        self._population.rank(screen, rivals=[] if self._generation else self._scan)
        self.elite_ids |= {elite.candidate.id for elite in self._population.elites()}
        self.expected_gain = self._expected_gain(screen)
        if self._generation < self.generations and not self._gains_too_little:
            self._generation += 1
            self._exploiting = True
            self._batch = self._exploitation(screen)

    @property
    def _gains_too_little(self) -> bool:
        if self.screening is None or self.expected_gain is None:
            return False
        return self.expected_gain < self.screening.min_expected_gain

    def _expected_gain(self, screen: Screen) -> float | None:
        """What the next generation may gain; with draws of its own, so that it changes nothing."""
        if self.screening is None:
            return None
        ranking = self._population.ranking
        rng = np.random.default_rng([self.seed, self._generation])
        return screen.expected_gain(
            outlook(ranking, self.elites, self.blocks, self.head, rng, self.screening.proposals)
        )

    def _initial_population(self) -> list[Individual]:
        return self._at_rest(
            initial_population(
                self.blocks,
                self.head,
                self.population,
                self._rng,
                with_recipes=self.seed_recipes,
                scan=[member.candidate for member in self._scan],
            )
        )

    def _exploitation(self, screen: Screen) -> list[Individual]:
        """The trials of each elite, which keep its momentum and extinction factor: these belong to
        the individual, whatever its genome."""
        return [
            elite.succeeded_by(self._candidate(genome, origin, (elite.candidate.id,), role))
            for elite in self._population.elites()
            for genome, origin, role in elite_trials(
                elite, self.blocks, self.head, self._rng, screen, rescore=self._rescoring
            )
        ]

    def _offspring(self, count: int, screen: Screen) -> list[Individual]:
        batch = []
        for _ in range(count):
            recipes: list[Child] = []
            if self.screening is not None and self.seed_recipes:
                recipes = recipe_proposals(self._candidates.values(), self.blocks, self.head)
            pool = self._population.mating_pool
            child = propose_child(pool, self.blocks, self.head, self._rng, screen, recipes)
            candidate = self._candidate(child.genome, child.origin, child.parents)
            batch.append(Individual(candidate, child.momentum))
        return batch

    def _candidate(
        self, genome: Genome, origin: str, parents: tuple[int, ...] = (), role: Role = "score"
    ) -> Candidate:
        candidate = Candidate(
            id=len(self._candidates),
            genome=genome,
            plan=decode(genome, self.blocks, self.head),
            origin=origin,
            parents=parents,
            generation=self._generation,
            fold=self._generation % self.folds,
            role=role,
        )
        self._candidates[candidate.id] = candidate
        return candidate

    def _at_rest(self, founders: list[Founder]) -> list[Individual]:
        candidates = [self._candidate(f.genome, f.origin, f.parents) for f in founders]
        return [Individual(candidate, np.zeros(len(self.blocks) + 1)) for candidate in candidates]
