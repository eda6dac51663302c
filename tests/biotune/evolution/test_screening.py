"""Which proposals a screened search trains, how it ranks, and when it ends."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import mean, median

import numpy as np
import pytest

from biotune.evolution import (
    BioTune,
    Candidate,
    Evaluation,
    FineTunePlan,
    Screening,
    decode,
    optimizer,
    recipe_grid,
)
from biotune.evolution.candidate import Individual
from biotune.evolution.elites import elite_trials
from biotune.evolution.operators import exploit
from biotune.evolution.population import Population
from biotune.evolution.proposals import propose_child, recipe_proposals
from biotune.evolution.recipes import MOST_RECIPES
from biotune.evolution.reproduction import reproduce
from biotune.evolution.screening import ModelScreen, NoScreen, judged_members, screen_of
from tests.biotune.evolution.searches import BLOCKS, MODES, Fitness, distance, run, small

VARIANTS: list[dict[str, object]] = [
    {},
    {"surgical_scan": True},
    {"folds": 2},
    {"folds": 2, "rescore_elites": False, "surgical_scan": True},
    {"reproduction": "sequential"},
    {"head": "trainable", "surgical_scan": True},
]


def screened(settings: Screening | None = None, **options: object) -> BioTune:
    return small(screening=settings or Screening(proposals=8), **options)


def mismatch(plan: FineTunePlan, ideal: FineTunePlan) -> float:
    """In [0, 1]: the mean over blocks of 1 if only one of the plans trains it, else of how far the
    logarithms of its rates to base 10 are apart, squared and at most 1."""
    costs = []
    for rate, best in zip(plan.values(), ideal.values(), strict=True):
        if rate is None or best is None:
            costs.append(float(rate is not best))
        else:
            costs.append(min(1.0, math.log10(rate / best) ** 2))
    return sum(costs) / len(costs)


def genomes(search: BioTune) -> list[object]:
    return [(candidate.genome, candidate.origin, candidate.parents) for candidate in search.history]


def batches(search: BioTune, fitness: Fitness = distance) -> list[list[Candidate]]:
    """All that a search asks for, batch by batch."""
    asked = []
    while not search.done:
        asked.append(search.ask())
        for candidate in asked[-1]:
            search.tell(candidate, fitness(candidate))
    return asked


# --- purity -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("ranks", [False, True])
def test_candidates_are_a_function_of_seed_and_tells(
    options: dict[str, object], ranks: bool
) -> None:
    def nearly(candidate: Candidate) -> float:
        return distance(candidate) + 1e-12 * (-1) ** candidate.id

    settings = Screening(proposals=8, ranks=ranks)
    first = run(screened(settings, **options), distance)
    again = run(screened(settings, **options), distance, order=np.random.default_rng(3))
    assert first.history == again.history
    assert first.ranked == again.ranked
    assert first.expected_gain == again.expected_gain
    other = run(screened(settings, **options), nearly)
    if ranks:  # by rounded scores
        assert genomes(other) == genomes(first)
    # Else genes move as far as the extinction factors, but nobody else is chosen or bred.
    assert [(c.origin, c.parents) for c in other.history] == [
        (c.origin, c.parents) for c in first.history
    ]
    for moved, genome in (
        (c.genome, f.genome) for c, f in zip(other.history, first.history, strict=True)
    ):
        assert moved.genes == pytest.approx(genome.genes, abs=1e-9)
    assert [c.id for c in other.ranked] == [c.id for c in first.ranked]
    assert genomes(run(screened(settings, **options, seed=1), distance)) != genomes(first)


def test_candidates_do_not_depend_on_the_threads_of_the_linear_algebra() -> None:
    script = (
        "import json\nfrom biotune.evolution import Screening\n"
        "from tests.biotune.evolution.searches import distance, run, small\n"
        "options = {'population': 12, 'generations': 2, 'surgical_scan': True}\n"
        "search = run(small(screening=Screening(), **options), distance)\n"
        "print(json.dumps([c.genome.genes.tolist() for c in search.ranked]))"
    )
    ranked = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert len(json.loads(ranked[0])) == 5 + 12 + 2 * 14
    assert ranked[0] == ranked[1]


# --- what is trained ----------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS)
def test_no_plan_is_trained_twice_but_an_elite_on_another_fold(options: dict[str, object]) -> None:
    asked = batches(screened(Screening(proposals=20), **options))
    counts = Counter(c.plan for batch in asked for c in batch if c.role != "rescore")
    # The initial population is not screened, and may hold a plan of the scan.
    founders = {c.plan for batch in asked for c in batch if c.generation == 0}
    assert {count for plan, count in counts.items() if plan not in founders} == {1}
    assert max(counts.values()) <= 2


def test_plans_are_trained_twice_when_nothing_else_is_left() -> None:
    plan, other = (FineTunePlan({"stem": None, "head": rate}) for rate in (1.0, 2.0))
    told = replace(small().ask()[0], plan=plan, evaluation=Evaluation(0.1))
    screen = ModelScreen(Screening(), [told])
    assert screen.choose([plan, other, plan, other], 4) == [1, 0, 2, 3]
    assert screen.choose([plan], 2) == [0]
    assert screen.choose([], 1) == []


def scored(score: Callable[[FineTunePlan], float]) -> list[Candidate]:
    """A grid of told plans of the five blocks: which of three are trained, and how fast."""
    plans = [
        FineTunePlan({"stem": None, "layer1": None, "layer2": a, "layer3": b, "head": c})
        for a in (None, 1.0, 5.0)
        for b in (None, 1.0, 5.0)
        for c in (1.0, 5.0)
    ]
    like = small().ask()[0]
    return [
        replace(like, id=i, plan=plan, evaluation=Evaluation(score(plan)))
        for i, plan in enumerate(plans)
    ]


def late_and_fast(plan: FineTunePlan) -> float:
    """The faster layer3, the better; the other blocks cost a little."""
    rate = plan["layer3"]
    gain = 0.0 if rate is None else 0.2 + 0.1 * math.log10(rate)
    return 0.6 - gain + 0.05 * (len(plan.trained_blocks) - 1)


def test_the_choice_is_what_is_expected_to_be_best_and_with_optimism_what_is_unknown() -> None:
    expected = FineTunePlan(
        {"stem": None, "layer1": None, "layer2": None, "layer3": 4.0, "head": 2.0}
    )
    unknown = FineTunePlan({"stem": 10.0, "layer1": 0.1, "layer2": None, "layer3": 5.0, "head": 1})
    hopeless = FineTunePlan(
        {"stem": None, "layer1": None, "layer2": 3.0, "layer3": None, "head": 3.0}
    )
    candidates = scored(late_and_fast)
    for optimism, best in [(0.0, 1), (6.0, 2)]:
        screen = ModelScreen(Screening(optimism=optimism), candidates)
        first, second = screen.choose([hopeless, expected, unknown], 2)
        assert first == best
        assert second == 3 - best


def test_a_choice_moves_the_next_away_from_it() -> None:
    plans = [
        FineTunePlan({"stem": 10.0, "layer1": 0.1, "layer2": None, "layer3": 5.0, "head": rate})
        for rate in (1.0, 1.01, 1.02)
    ]
    elsewhere = FineTunePlan({"stem": 1.0, "layer1": 8.0, "layer2": 8.0, "layer3": 5.0, "head": 1})
    proposals = [*plans, elsewhere]
    screen = ModelScreen(Screening(optimism=6.0), scored(late_and_fast))
    assert set(screen.choose(proposals, 1)) < {0, 1, 2, 3}
    together = ModelScreen(Screening(optimism=6.0), scored(late_and_fast)).choose(proposals, 2)
    assert 3 in together  # and not two neighbours


class LastScreen:
    """Chooses the last proposals, and remembers how many there were."""

    proposals = 9

    def __init__(self) -> None:
        self.offered: list[int] = []

    def choose(self, proposals: Sequence[FineTunePlan], count: int) -> list[int]:
        self.offered.append(len(proposals))
        return [len(proposals) - 1 - place for place in range(count)]

    def judged(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        return list(candidates)

    def expected_gain(self, proposals: Iterable[FineTunePlan]) -> None: ...


def test_steps_and_children_are_chosen_among_as_many_as_the_screen_says() -> None:
    screen, rng, again = LastScreen(), np.random.default_rng(5), np.random.default_rng(5)
    pool = [Individual(candidate, np.zeros(6)) for candidate in scored(late_and_fast)[3:8]]
    genome = pool[0].candidate.genome
    trials = elite_trials(pool[0], BLOCKS, "evolved", rng, screen, rescore=True)
    steps = [step for _ in range(4) for step in exploit(genome, "evolved", again)]
    assert screen.offered == [8]
    assert trials == [
        (genome, "rescore", "rescore"),
        (steps[7], "exploitation", "trial"),
        (steps[6], "exploitation", "trial"),
    ]
    child = propose_child(pool, BLOCKS, "evolved", rng, screen)
    bred = [reproduce(pool, 5, "evolved", again) for _ in range(9)]
    assert child.genome == bred[8].genome
    recipe = recipe_proposals([], BLOCKS, "evolved")[0]
    assert propose_child(pool, BLOCKS, "evolved", rng, screen, [recipe]) is recipe
    assert screen.offered == [8, 9, 10]


# --- recipes ------------------------------------------------------------------------------


def likes(name: str) -> Fitness:
    """The nearer a plan is to this recipe, the better."""
    (recipe,) = (recipe for recipe in recipe_grid(BLOCKS) if recipe.name == name)

    def fitness(candidate: Candidate) -> float:
        return 0.02 + mismatch(candidate.plan, decode(recipe.genome, BLOCKS)) / 4

    return fitness


def test_a_recipe_takes_a_childs_place_when_scores_make_it_promising() -> None:
    name = "layer-wise decay 0.65 from 10x"
    search = run(screened(), likes(name))
    (tried,) = (c for c in search.history if c.recipe == name)
    assert tried.generation >= 1
    assert tried.role == "score"
    assert tried.parents == ()
    assert search.best.recipe == name


@pytest.mark.parametrize("population", [5, 8, 12])
def test_at_most_six_recipes_are_tried(population: int) -> None:
    for seed in range(4):
        search = run(
            screened(Screening(proposals=2), population=population, generations=5, seed=seed),
            lambda candidate: 0.5 - 0.1 * (candidate.recipe is not None) + 1e-3 * candidate.id,
        )
        tried = [c for c in search.history if c.origin.startswith("recipe:")]
        assert len(tried) == MOST_RECIPES


def test_without_seed_recipes_none_is_tried() -> None:
    fitness = likes("layer-wise decay 0.65 from 10x")
    search = run(screened(seed_recipes=False), fitness)
    assert not [c for c in search.history if c.recipe is not None]


def test_without_screening_recipes_are_those_of_the_initial_population() -> None:
    search = run(small(), likes("layer-wise decay 0.65 from 10x"))
    assert {c.generation for c in search.history if c.recipe is not None} == {0}


def test_a_block_alone_is_a_recipe() -> None:
    search = run(screened(surgical_scan=True), distance)
    names = [candidate.recipe for candidate in search.history[:7]]
    assert names == [*(f"{block} alone 5x" for block in BLOCKS), "full 1x", "full 3x"]
    scan = small(surgical_scan=True, head="trainable").ask()
    assert scan[0].plan == FineTunePlan({**dict.fromkeys(BLOCKS), "stem": 5.0, "head": 1.0})
    assert [scan[0].recipe, scan[-1].recipe] == ["stem alone 5x", "head alone 5x"]


# --- ranking ------------------------------------------------------------------------------


def with_a_lucky_one(plan: FineTunePlan) -> float:
    """Which is told .1 between neighbours of .4 and .5; trained layer3 is good in truth."""
    lucky = FineTunePlan({"stem": None, "layer1": None, "layer2": 1.0, "layer3": None, "head": 1.0})
    if plan == lucky:
        return 0.19
    return (0.5 if plan["layer3"] is None else 0.2) + 0.01 * len(plan.trained_blocks)


def test_a_lucky_score_is_not_the_best_unless_scores_rank() -> None:
    candidates = scored(with_a_lucky_one)
    luckiest = min(candidates, key=lambda c: c.rank_key)
    assert luckiest.fitness == 0.19
    judged = screen_of(Screening(ranks=True), candidates).judged(candidates)
    assert [c.id for c in judged] == [c.id for c in candidates]
    best = min(judged, key=lambda c: c.rank_key)
    assert best.plan["layer3"] is not None
    # Nearer to its neighbours than to its score; they count as .27, as bad as it is good.
    limit = 2 * median(c.fitness for c in candidates) - luckiest.fitness
    assert limit == pytest.approx(0.27)
    assert limit - 0.03 < judged[luckiest.id].fitness < limit
    assert screen_of(Screening(), candidates).judged(candidates) == candidates
    assert screen_of(None, candidates).judged(candidates) == candidates


def test_the_ranking_keeps_the_scores_that_were_told() -> None:
    def noisy(candidate: Candidate) -> float:
        noise = np.random.default_rng([candidate.id]).normal(0, 0.05)
        return round(distance(candidate) + float(noise), 6)

    search = run(screened(Screening(proposals=8, ranks=True)), noisy)
    told = {candidate.id: candidate for candidate in search.history}
    assert all(candidate == told[candidate.id] for candidate in search.ranked)
    assert all(c.fitness == noisy(c) for c in search.ranked)
    by_score = sorted(search.history, key=lambda candidate: candidate.rank_key)
    assert search.ranked != by_score
    assert run(screened(Screening(proposals=8, ranks=False)), noisy).best.fitness == min(
        c.fitness for c in run(screened(Screening(proposals=8, ranks=False)), noisy).history
    )


def test_failed_and_stopped_runs_rank_last_and_count_as_bad_or_as_estimated() -> None:
    candidates = scored(late_and_fast)
    good = min(candidates, key=lambda c: c.fitness).id

    def judged_with(evaluation: Evaluation) -> list[Candidate]:
        told = [replace(c, evaluation=evaluation) if c.id == good else c for c in candidates]
        return ModelScreen(Screening(ranks=True), told).judged(told)

    stopped = judged_with(Evaluation(0.3, outcome="stopped"))
    assert stopped[good].evaluation is not None
    assert stopped[good].evaluation.outcome == "stopped"
    assert max(stopped, key=lambda c: c.rank_key).id == good
    for outcome, fitness in [("diverged", math.inf), ("infeasible", 0.0), ("diverged", -math.inf)]:
        failed = judged_with(Evaluation(fitness, outcome=outcome))  # type: ignore[arg-type]
        assert failed[good].evaluation == Evaluation(fitness, outcome=outcome)  # type: ignore[arg-type]
        # A neighbour is expected to be worse than where the same plan was estimated to be good.
        assert failed[good - 2].fitness > stopped[good - 2].fitness


def test_individuals_are_judged_in_their_order() -> None:
    search = small()
    candidates = scored(with_a_lucky_one)
    for candidate in search.ask():
        search.tell(candidate, 0.5)
    members = [Individual(c, np.full(6, float(c.id)), 0.5) for c in reversed(candidates)]
    screen = ModelScreen(Screening(ranks=True), candidates)
    judged = judged_members(members, screen)
    assert [m.candidate for m in judged] == screen.judged(reversed(candidates))
    assert [m.momentum[0] for m in judged] == [c.id for c in reversed(candidates)]
    assert {m.extinction for m in judged} == {0.5}


def test_while_the_initial_population_is_scored_it_competes_with_the_best_of_the_scan() -> None:
    alone = {"scan:layer2": 0.1, "scan:layer3": 0.2}
    for options in ({}, {"screening": Screening(proposals=4)}):
        search = small(surgical_scan=True, **options)
        assert search.standing_elites == []
        for candidate in search.ask():
            assert search.standing_elites == []
            search.tell(candidate, alone.get(candidate.origin, 0.6))
        for candidate in search.ask():
            assert [c.origin for c in search.standing_elites] == ["scan:layer2", "scan:layer3"]
            search.tell(candidate, 0.9)
        assert search.generation == 1
    assert small(screening=Screening()).standing_elites == []


def test_a_sequential_parent_is_held_against_its_child_by_what_is_told_now() -> None:
    candidates = scored(late_and_fast)
    best, worst = (pick(candidates, key=lambda c: c.fitness) for pick in (min, max))
    believed_good = replace(worst, evaluation=Evaluation(0.0))
    population = Population(3, 1, rescoring=False)
    population.mating_pool = [Individual(believed_good, np.zeros(6))]
    child = Individual(replace(best, id=99, parents=(worst.id,)), np.zeros(6))
    population.add([child], ModelScreen(Screening(ranks=True), candidates), beat_parents=True)
    assert population.mating_pool == []


# --- failures -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("failed_generation", [0, 1, 3, None])
def test_failures_do_not_break_a_screened_search(
    options: dict[str, object], failed_generation: int | None
) -> None:
    outcomes = [
        Evaluation(math.inf, outcome="diverged"),
        Evaluation(0.01, outcome="infeasible"),
        Evaluation(0.3, outcome="stopped"),
        Evaluation(math.inf, outcome="stopped"),
    ]

    def fitness(candidate: Candidate) -> float | Evaluation:
        scattered = failed_generation is None and candidate.id % 3 == 0
        if scattered or candidate.generation == failed_generation:
            return outcomes[candidate.id // 3 % 4]
        return distance(candidate)

    search = run(screened(**options), fitness)
    assert len(search.history) == search.planned_evaluations
    assert search.best.finished or (failed_generation == 3 and options.get("folds") == 2)


@pytest.mark.parametrize("outcome", ["infeasible", "diverged", "stopped"])
@pytest.mark.parametrize("options", VARIANTS)
def test_a_screened_search_in_which_nothing_finishes_still_ends(
    options: dict[str, object], outcome: str
) -> None:
    search = run(
        screened(Screening(proposals=4, min_expected_gain=0.1), **options),
        lambda _: Evaluation(0.5, outcome=outcome),  # type: ignore[arg-type]
    )
    assert len(search.history) == search.planned_evaluations
    assert search.expected_gain is None


def test_before_there_is_any_result_nothing_is_screened() -> None:
    asked = small().ask()
    failed = [replace(c, evaluation=Evaluation(math.inf, outcome="diverged")) for c in asked]
    for candidates in ([], asked, failed):
        assert isinstance(screen_of(Screening(), candidates), NoScreen)
    told = [*failed[:-1], replace(asked[-1], evaluation=Evaluation(0.5))]
    assert isinstance(screen_of(Screening(), told), ModelScreen)
    assert isinstance(screen_of(None, told), NoScreen)


def test_equal_scores_are_no_obstacle() -> None:
    search = run(screened(surgical_scan=True), lambda _: 0.25)
    assert len(search.history) == search.planned_evaluations
    assert search.best.id == 0
    assert search.expected_gain == 0


# --- the expected gain --------------------------------------------------------------------


def test_there_is_no_expected_gain_before_the_first_ranking_nor_without_screening() -> None:
    search = screened(surgical_scan=True)
    assert search.expected_gain is None
    while search.generation == 0:
        assert search.expected_gain is None
        search.tell(search.ask()[0], 0.1 + 0.01 * len(search.history))
    assert search.expected_gain is not None
    assert run(small(), distance).expected_gain is None


def test_the_expected_gain_falls_as_a_search_converges() -> None:
    first, last = [], []
    for seed in range(4):
        search = screened(Screening(), seed=seed, generations=8, seed_recipes=False)
        gains = []
        while not search.done:
            search.tell(search.ask()[0], distance(search.ask()[0]))
            gains.append(search.expected_gain)
        first.append(next(gain for gain in gains if gain is not None))
        last.append(gains[-1])
    assert min(*first, *last) >= 0
    assert median(last) < median(first) / 3


def test_a_search_ends_after_a_generation_that_leaves_too_little_to_gain() -> None:
    whole = screened(generations=8)
    gains: list[float | None] = []
    while not whole.done:
        generation = whole.generation
        while whole.generation == generation and not whole.done:
            whole.tell(whole.ask()[0], distance(whole.ask()[0]))
        gains.append(whole.expected_gain)
    assert len(gains) == 9
    threshold = 1.01 * max(gain for gain in gains[2:5] if gain is not None)
    settings = Screening(proposals=8, min_expected_gain=threshold)
    ended = run(screened(settings, generations=8), distance)
    expected = next(g for g, gain in enumerate(gains) if gain is not None and gain < threshold)
    assert ended.generation == expected < 8
    assert ended.ask() == []
    assert ended.history == whole.history[: len(ended.history)]
    assert len(ended.history) == 5 + 7 * expected < ended.planned_evaluations
    assert ended.expected_gain == gains[expected]
    tiny = run(screened(Screening(proposals=8, min_expected_gain=1e-300), generations=8), distance)
    assert tiny.history == whole.history[: len(tiny.history)]


def test_looking_out_for_what_could_be_gained_draws_nothing_from_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = run(screened(), distance).history
    monkeypatch.setattr(optimizer, "outlook", lambda *_: iter(()))
    assert run(screened(), distance).history == history


def test_what_was_asked_for_before_gains_nothing() -> None:
    candidates = scored(late_and_fast)
    screen = ModelScreen(Screening(), candidates)
    best = min(candidates, key=lambda c: c.fitness)
    assert screen.expected_gain([best.plan]) == screen.expected_gain([]) == 0
    faster = FineTunePlan({**best.plan, "layer3": 7.0})
    assert (screen.expected_gain([faster, best.plan]) or 0) > 0.001
    stopped = [replace(c, evaluation=Evaluation(c.fitness, outcome="stopped")) for c in candidates]
    assert ModelScreen(Screening(), stopped).expected_gain([faster]) is None


# --- settings -----------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_landscapes() -> None:
    assert Screening() == Screening(proposals=100, optimism=1.0, ranks=False, min_expected_gain=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proposals": 1}, "proposals must be a whole number of at least 2, got 1"),
        ({"proposals": 4.0}, r"proposals must be a whole number of at least 2, got 4\.0"),
        ({"optimism": -0.1}, r"optimism must be a number of at least 0, got -0\.1"),
        ({"optimism": math.nan}, "optimism must be a number of at least 0, got nan"),
        ({"optimism": math.inf}, "optimism must be a number of at least 0, got inf"),
        ({"optimism": "1"}, "optimism must be a number of at least 0, got '1'"),
        ({"min_expected_gain": -1}, "min_expected_gain must be a number of at least 0, got -1"),
        ({"min_expected_gain": True}, "min_expected_gain must be a number .* 0, got True"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Screening(**settings)  # type: ignore[arg-type]


# --- what it is for -----------------------------------------------------------------------


def selective_plan(blocks: Sequence[str], rng: np.random.Generator) -> FineTunePlan:
    """Trains two to five neighbouring blocks, each at a rate of its own, and no others."""
    length = int(rng.integers(2, 6))
    first = int(rng.integers(0, len(blocks) - length + 1))
    rates = (10 ** rng.uniform(-0.2, 1, len(blocks))).tolist()
    trained = range(first, first + length)
    return FineTunePlan({b: rates[i] if i in trained else None for i, b in enumerate(blocks)})


def test_a_screened_search_comes_nearer_to_the_best_plan_with_as_many_evaluations() -> None:
    blocks = [f"block{place}" for place in range(9)]

    def miss(ideal: FineTunePlan, candidate: Candidate) -> float:
        return mismatch(candidate.plan, ideal)

    found: dict[bool, list[float]] = {False: [], True: []}
    for seed, screened in product(range(16), found):
        search = BioTune(
            blocks,
            population=6,
            generations=2,
            elites=2,
            seed=seed,
            screening=Screening() if screened else None,
        )
        ideal = selective_plan(blocks, np.random.default_rng([seed, 1]))
        found[screened].append(run(search, partial(miss, ideal)).best.fitness)
    assert mean(found[True]) < 0.75 * mean(found[False])
    assert sum(a < b for a, b in zip(found[True], found[False], strict=True)) >= 13


@pytest.mark.parametrize("mode", MODES)
def test_a_screened_search_finds_what_an_unscreened_one_does_not(mode: str) -> None:
    values = [
        median(
            run(small(seed=seed, reproduction=mode, screening=screening), distance).best.fitness
            for seed in range(8)
        )
        for screening in (Screening(proposals=20), None)
    ]
    assert values[0] < 0.75 * values[1]
