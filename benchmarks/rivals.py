"""Random search, TPE and CMA-ES behind the protocol of a search: what BioTune must beat.

They see genomes as BioTune's are: one importance a block and the threshold, all in [0, 1]. They are
given the known recipes of BioTune's initial population to begin with, so that the recipe which
their find is held against is one that was tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import cmaes  # type: ignore[import-untyped]
import numpy as np
import optuna
from numpy.typing import NDArray

from biotune.evolution.candidate import Candidate
from biotune.evolution.checks import check_fitness
from biotune.evolution.genome import Genome, decode
from biotune.evolution.recipes import recipes
from biotune.plan import Evaluation

BATCH = 2
"""So many candidates are asked for at once."""


class Sampler(Protocol):
    """Proposes genes, [B+2] in [0, 1], and is told how they did."""

    def ask(self) -> Genome:
        """The next one."""
        ...

    def tell(self, genome: Genome, fitness: float) -> None:
        """What an asked genome, or one of another origin, came to; lower is better."""
        ...


class Rival:
    """A sampler as a search: recipes first, then batches of what it proposes until its budget is
    spent; see :class:`biotune.evolution.protocol.Optimizer`.

    Args:
        name: origin of its candidates.
        sampler: proposes; it is told in order of the ids, whole batches at a time.
        blocks: of the network, in forward order, the head last.
        recipes_first: how many known recipes to begin with.
        over: whether the budget is spent; asked when a batch is told.
    """

    def __init__(
        self,
        name: str,
        sampler: Sampler,
        blocks: Sequence[str],
        recipes_first: int,
        over: Callable[[], bool],
    ) -> None:
        self._name, self._sampler, self._blocks, self._over = name, sampler, tuple(blocks), over
        self._candidates: list[Candidate] = []
        self._batches = 0
        self._open = [
            self._candidate(recipe.genome, f"recipe:{recipe.name}")
            for recipe in recipes(blocks)[:recipes_first]
        ]

    @property
    def done(self) -> bool:
        """Whether the budget is spent, and all that was asked for is told."""
        return not self._open

    @property
    def planned_evaluations(self) -> int:
        """Not known: what is asked for so far."""
        return len(self._candidates)

    @property
    def standing_elites(self) -> list[Candidate]:
        """None: every candidate is trained to its end."""
        return []

    @property
    def history(self) -> list[Candidate]:
        """All that were told, by id."""
        return [candidate for candidate in self._candidates if candidate.evaluation is not None]

    @property
    def ranked(self) -> list[Candidate]:
        """The same, best first."""
        return sorted(self.history, key=lambda candidate: candidate.rank_key)

    @property
    def best(self) -> Candidate:
        """The first of :attr:`ranked`."""
        return self.ranked[0]

    def ask(self) -> list[Candidate]:
        """The candidates of the batch that are not told yet."""
        return [c for c in self._open if self._candidates[c.id].evaluation is None]

    def tell(self, candidate: Candidate, fitness: float | Evaluation) -> Candidate:
        """Report how a candidate did; the candidate with its evaluation."""
        told = replace(candidate, evaluation=check_fitness(candidate.id, fitness))
        self._candidates[told.id] = told
        if not self.ask():
            for member in self._open:
                self._sampler.tell(member.genome, self._candidates[member.id].fitness)
            self._batches += 1
            self._open = [] if self._over() else [self._propose() for _ in range(BATCH)]
        return told

    def _propose(self) -> Candidate:
        while not (genome := self._sampler.ask()).is_viable():
            self._sampler.tell(genome, 1.0)  # it trains nothing, which costs nothing
        return self._candidate(genome, self._name)

    def _candidate(self, genome: Genome, origin: str) -> Candidate:
        candidate = Candidate(
            id=len(self._candidates),
            genome=genome,
            plan=decode(genome, self._blocks),
            origin=origin,
            parents=(),
            generation=self._batches,
            fold=0,
        )
        self._candidates.append(candidate)
        return candidate


class RandomSampler:
    """Uniform genes."""

    def __init__(self, blocks: int, seed: int) -> None:
        self._rng, self._blocks = np.random.default_rng(seed), blocks

    def ask(self) -> Genome:
        return Genome.random(self._rng, self._blocks)

    def tell(self, genome: Genome, fitness: float) -> None:
        """Nothing is learned."""


class TPESampler:
    """Optuna's tree-structured Parzen estimator, of all genes together, from the first proposal
    after three on: chosen as CMA-ES's settings were, against ten."""

    def __init__(self, blocks: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True, constant_liar=True, n_startup_trials=3, seed=seed
            )
        self._study = optuna.create_study(sampler=sampler)
        uniform = optuna.distributions.FloatDistribution(0, 1)
        self._genes = {str(gene): uniform for gene in range(blocks + 1)}
        self._open: dict[Genome, optuna.Trial] = {}

    def ask(self) -> Genome:
        trial = self._study.ask(dict(self._genes))
        genome = Genome.from_genes([trial.params[gene] for gene in self._genes])
        self._open[genome] = trial
        return genome

    def tell(self, genome: Genome, fitness: float) -> None:
        trial = self._open.pop(genome, None)
        if trial is not None:
            self._study.tell(trial, fitness)
            return
        params = dict(zip(self._genes, genome.to_list(), strict=True))
        self._study.add_trial(
            optuna.trial.create_trial(params=params, distributions=dict(self._genes), value=fitness)
        )


class CMAESSampler:
    """CMA-ES with clipped genes. It learns from its own proposals alone.

    Where it begins, how wide and how large a generation is were chosen for the least regret on
    recorded landscapes (replicates 1000 to 1059; the mean of all genes or the best recipe, .15 or
    .3, 6 or 11).
    """

    def __init__(self, blocks: int, seed: int) -> None:
        self._search = cmaes.CMA(np.full(blocks + 1, 0.5), 0.3, seed=seed, population_size=6)
        self._asked: dict[Genome, NDArray[np.float64]] = {}
        self._told: list[tuple[NDArray[np.float64], float]] = []

    def ask(self) -> Genome:
        genes = self._search.ask()
        genome = Genome.from_genes(np.clip(genes, 0, 1))
        self._asked[genome] = genes
        return genome

    def tell(self, genome: Genome, fitness: float) -> None:
        if genome in self._asked:
            self._told.append((self._asked.pop(genome), fitness))
        if len(self._told) == self._search.population_size:
            self._search.tell(self._told)
            self._told = []


SAMPLERS: dict[str, Callable[[int, int], Sampler]] = {
    "random": RandomSampler,
    "tpe": TPESampler,
    "cma_es": CMAESSampler,
}
"""Name → from number of blocks and seed to sampler."""
