"""Elites: what is tried from each, that they are scored again on another fold, and who survives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from biotune.evolution.candidate import by_rank
from biotune.evolution.genome import decode
from biotune.evolution.operators import exploit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from biotune.evolution.candidate import Individual, Role
    from biotune.evolution.genome import Genome, HeadMode
    from biotune.evolution.screening import Screen


TRIALS = 2
"""Steps from an elite that are scored; as published, one up and one down along the same gene."""


def elite_trials(
    elite: Individual,
    blocks: Sequence[str],
    head: HeadMode,
    rng: np.random.Generator,
    screen: Screen,
    *,
    rescore: bool,
) -> list[tuple[Genome, str, Role]]:
    """What is to be scored from an elite: genome, origin and role of each.

    Args:
        elite: of the last generation.
        blocks: of the network.
        head: see :data:`~biotune.evolution.genome.HeadMode`.
        rng: of the search.
        screen: chooses among the steps.
        rescore: first of all the elite itself, because the fold has changed.
    """
    genome = elite.candidate.genome
    trials: list[tuple[Genome, str, Role]] = [(genome, "rescore", "rescore")] if rescore else []
    pairs = max(1, screen.proposals // TRIALS)
    steps = [step for _ in range(pairs) for step in exploit(genome, head, rng)]
    chosen = screen.choose([decode(step, blocks, head) for step in steps], TRIALS)
    return trials + [(steps[index], "exploitation", "trial") for index in chosen]


def survivors(
    elites: Sequence[Individual], trials: Sequence[Individual], *, rescored: bool
) -> list[Individual]:
    """Each elite, or the best of its trials if that beats it.

    Args:
        elites: of the last generation, best first.
        trials: told; of all elites, each elite's in the order of :func:`elite_trials`.
        rescored: whether the first trial of each is the elite itself, by whose new score it stands.
    """
    standing = []
    for elite in elites:
        steps = [trial for trial in trials if elite.candidate.id in trial.candidate.parents]
        if rescored:
            elite, *steps = steps
        best = by_rank(steps)[0]
        standing.append(best if best.candidate.beats(elite.candidate) else elite)
    return standing
