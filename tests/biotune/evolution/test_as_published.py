"""Without screening a search is what it was before there was any: the same candidates."""

from __future__ import annotations

import hashlib

import pytest

from biotune.evolution import BioTune, Candidate
from tests.biotune.evolution.searches import BLOCKS, distance, run

PAPER = {
    "population": 10,
    "generations": 10,
    "elites": 3,
    "folds": 2,
    "seed_recipes": False,
    "reproduction": "sequential",
}
PIPELINE = {"population": 6, "generations": 3, "elites": 2}


def history_digest(search: BioTune) -> str:
    """Of all candidates; genes to twelve decimals, lest a processor differs in the last bit."""

    def told(candidate: Candidate) -> float:
        return round(distance(candidate) + 0.01 * candidate.fold, 4)

    lines = [
        f"{c.id} {[round(gene, 12) for gene in c.genome.genes.tolist()]} "
        f"{c.origin} {c.parents} {c.role} {c.generation} {c.fold} {c.fitness}"
        for c in run(search, told).history
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        (PAPER, "d491badcb36607b9"),
        ({**PAPER, "seed": 3, "rescore_elites": False}, "13640ba10d9a0826"),
        ({**PAPER, "folds": 1, "reproduction": "batch"}, "ad68f86dd2922c63"),
        ({**PIPELINE, "surgical_scan": True}, "d38ed67fab490730"),
        (
            {**PIPELINE, "seed": 5, "head": "trainable", "population": 16, "folds": 2},
            "2bb466721e2e3c35",
        ),
        ({**PIPELINE, "seed": 7, "reproduction": "sequential"}, "dbd21a0b6b8a81b2"),
    ],
    ids=["paper", "elites keep old scores", "one fold", "scan", "head trained", "sequential"],
)
def test_histories_are_those_of_commit_4af523c(settings: dict[str, object], digest: str) -> None:
    assert history_digest(BioTune(BLOCKS, **settings)) == digest
