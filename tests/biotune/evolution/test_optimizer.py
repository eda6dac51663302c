"""The search as ask and tell: its schedule, its purity, its folds, its failures, its errors."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biotune.evolution import (
    BioTune,
    Candidate,
    Evaluation,
    Genome,
    Screening,
    decode,
    proposals,
    recipes,
)
from biotune.evolution.candidate import Individual
from biotune.evolution.reproduction import Child, reproduce
from biotune.evolution.selection import extinction_factors
from tests.biotune.evolution.searches import BLOCKS, MODES, distance, run, small

# --- the schedule -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    population=st.integers(min_value=2, max_value=8),
    generations=st.integers(min_value=0, max_value=4),
    share=st.floats(min_value=0, max_value=1),
    folds=st.integers(min_value=1, max_value=3),
    rescore=st.booleans(),
    mode=st.sampled_from(MODES),
    head=st.sampled_from(["evolved", "trainable"]),
    with_recipes=st.booleans(),
    scan=st.booleans(),
    screening=st.sampled_from([None, Screening(proposals=3)]),
)
def test_a_search_asks_for_as_many_viable_candidates_as_the_cost_formula_says(
    population: int,
    generations: int,
    share: float,
    folds: int,
    rescore: bool,
    mode: str,
    head: str,
    with_recipes: bool,
    scan: bool,
    screening: Screening | None,
) -> None:
    elites = max(1, round(share * (population - 1)))
    search = BioTune(
        BLOCKS,
        population=population,
        generations=generations,
        elites=elites,
        folds=folds,
        head=head,
        seed_recipes=with_recipes,
        rescore_elites=rescore,
        reproduction=mode,
        surgical_scan=scan,
        screening=screening,
    )
    run(search, distance)
    expected = len(BLOCKS) * scan + population + generations * (2 * elites + population - elites)
    if folds > 1 and rescore:
        expected += generations * elites
    assert search.planned_evaluations == len(search.history) == expected
    assert [candidate.id for candidate in search.history] == list(range(expected))
    for candidate in search.history:
        assert candidate.genome.is_viable(head)
        assert candidate.plan == decode(candidate.genome, BLOCKS, head)
        assert candidate.fold == candidate.generation % folds
        assert all(parent < candidate.id for parent in candidate.parents)


def test_the_papers_setting_is_140_evaluations() -> None:
    assert BioTune(BLOCKS, population=10, generations=10, elites=3).planned_evaluations == 140


def test_a_generation_is_exploitation_then_offspring() -> None:
    search = small(seed_recipes=False)
    batches = []
    while not search.done:
        batches.append([candidate.origin for candidate in search.ask()])
        for candidate in search.ask():
            search.tell(candidate, distance(candidate))
    assert batches == [["random"] * 5, *[["exploitation"] * 4, ["offspring"] * 3] * 3]


def test_sequential_reproduction_asks_for_one_child_at_a_time() -> None:
    search = small(reproduction="sequential", seed_recipes=False, generations=1)
    sizes = []
    while not search.done:
        sizes.append(len(search.ask()))
        for candidate in search.ask():
            search.tell(candidate, distance(candidate))
    assert sizes == [5, 4, 1, 1, 1]


def test_a_sequential_parent_worse_than_its_child_has_no_further_children() -> None:
    search = small(reproduction="sequential", population=8, elites=1, generations=1)

    def ever_better(candidate: Candidate) -> float:
        return 1 / (1 + candidate.id)

    run(search, ever_better)
    children = [candidate for candidate in search.history if candidate.origin == "offspring"]
    newcomers = [candidate for candidate in search.history if candidate.origin == "newcomer"]
    # Every child beats both of its parents, so a pool of 8 gives three children, and then holds 2.
    assert [len(child.parents) for child in children] == [2, 2, 2]
    assert len({parent for child in children for parent in child.parents}) == 6
    assert len(newcomers) == 4
    assert all(newcomer.parents == () for newcomer in newcomers)


def test_up_to_half_of_the_initial_population_are_recipes() -> None:
    for population, expected in [(2, 1), (5, 2), (10, 5), (30, 7)]:
        search = BioTune(BLOCKS, population=population, elites=1)
        origins = [candidate.origin for candidate in search.ask()]
        names = [f"recipe:{recipe.name}" for recipe in recipes(BLOCKS)]
        assert origins == names[:expected] + ["random"] * (population - expected)
    assert {candidate.origin for candidate in small(seed_recipes=False).ask()} == {"random"}


def test_exploitation_moves_one_trained_gene_of_each_elite_both_ways() -> None:
    search = small()
    initial = search.ask()
    for candidate in initial:
        search.tell(candidate, distance(candidate))
    elites = sorted(initial, key=distance)[:2]
    trials = search.ask()
    assert [trial.parents for trial in trials] == [(e.id,) for e in elites for _ in range(2)]
    for elite, up, down in zip(elites, trials[::2], trials[1::2], strict=True):
        moved = np.flatnonzero(up.genome.genes != elite.genome.genes)
        assert moved.tolist() == np.flatnonzero(down.genome.genes != elite.genome.genes).tolist()
        assert elite.plan[BLOCKS[moved[0]]] is not None
        both = (up.genome.genes + down.genome.genes)[moved] / 2
        assert both == pytest.approx(elite.genome.genes[moved])


def test_a_better_trial_replaces_its_elite_and_an_equal_one_does_not() -> None:
    # Generation 0 by id: elites are 0 and 1. Trials are 4 … 7. Only 5 improves on its elite.
    told = {0: 0.1, 1: 0.2, 2: 0.8, 3: 0.9, 4: 0.1, 5: 0.05, 6: 0.2, 7: 0.3}
    search = BioTune(BLOCKS, population=4, generations=2, elites=2, seed_recipes=False)
    run_until = 10
    while search.ask()[0].id < run_until:
        for candidate in search.ask():
            search.tell(candidate, told.get(candidate.id, 0.7))
    assert [trial.parents for trial in search.ask()] == [(5,), (5,), (1,), (1,)]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[list[Individual]]:
    """The mating pool of every child that is bred from now on."""
    seen: list[list[Individual]] = []

    def spy(pool: list[Individual], *rest: object) -> Child:
        seen.append(list(pool))
        return reproduce(pool, *rest)

    monkeypatch.setattr(proposals, "reproduce", spy)
    return seen


def test_the_whole_population_mates_sorted_again_after_exploitation(
    pools: list[list[Individual]],
) -> None:
    # Elites are 0 and 1. Trial 7, a step from 1, is the best of all; 0 stays as it is.
    told = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 7: 0.05}
    run(
        BioTune(BLOCKS, population=4, generations=1, elites=2, seed_recipes=False),
        lambda candidate: told.get(candidate.id, 0.7),
    )
    assert [[parent.candidate.id for parent in pool] for pool in pools] == [[7, 0, 2, 3]] * 2
    # Extinction factors are those of the last ranking: 7 has that of 1, which it replaced.
    factors = extinction_factors([Evaluation(told[i]) for i in range(4)])
    assert [parent.extinction for parent in pools[0]] == pytest.approx(factors[[1, 0, 2, 3]])


def test_momentum_starts_at_rest_and_belongs_to_the_individual(
    pools: list[list[Individual]],
) -> None:
    def improving(candidate: Candidate) -> float:
        if candidate.generation == 1 and candidate.origin == "exploitation":
            return 0.9
        return 1 / (2 + candidate.id)

    search = run(BioTune(BLOCKS, population=5, generations=2, elites=1), improving)
    first, *_, last = pools
    assert not any(parent.momentum.any() for parent in first)
    # In generation 2 the best child of generation 1 was replaced by a step from it, and the other
    # children are in the pool themselves. The last is the elite of generation 0, still at rest.
    origins = [search.history[parent.candidate.id].origin for parent in last]
    assert origins == ["exploitation", "offspring", "offspring", "offspring", "random"]
    assert [bool(parent.momentum.any()) for parent in last] == [True, True, True, True, False]


def test_sequential_parents_are_not_compared_across_folds(pools: list[list[Individual]]) -> None:
    def better_on_fold_1(candidate: Candidate) -> float:
        return 1 / (1 + candidate.id)

    for rescore, fold_0_stays in [(True, True), (False, False)]:
        pools.clear()
        search = BioTune(
            BLOCKS,
            population=8,
            generations=1,
            elites=1,
            folds=2,
            reproduction="sequential",
            rescore_elites=rescore,
        )
        run(search, better_on_fold_1)
        assert (sum(parent.candidate.fold == 0 for parent in pools[-1]) == 7) == fold_0_stays


def test_the_genome_that_is_kept_is_the_genome_that_was_scored() -> None:
    # Fault 5 of the released code: steps beyond [0, 1] were scored clipped and stored unclipped.
    asked: dict[int, Genome] = {}

    def the_more_the_better(candidate: Candidate) -> float:
        asked[candidate.id] = candidate.genome
        return float(1 - candidate.genome.importances.mean())

    search = run(small(population=6, generations=12, elites=3), the_more_the_better)
    assert any(
        candidate.origin == "exploitation" and candidate.genome.importances.max() == 1.0
        for candidate in search.history
    )
    for candidate in search.history:
        assert candidate.genome == asked[candidate.id]
        assert 0 <= candidate.genome.genes.min() <= candidate.genome.genes.max() <= 1
        if candidate.origin == "exploitation":
            (parent,) = candidate.parents
            assert np.sum(asked[parent].genes != candidate.genome.genes) <= 1
    assert search.best.genome == asked[search.best.id]


def test_a_search_finds_what_it_searches_for() -> None:
    wins = 0
    for seed in range(20):
        search = run(BioTune(BLOCKS, seed=seed, seed_recipes=False), distance)
        rng = np.random.default_rng(seed)
        random = (Genome.random_viable(rng, 5) for _ in range(140))
        baseline = min(distance(replace(search.best, genome=genome)) for genome in random)
        wins += search.best.fitness < baseline
    assert wins >= 18


# --- purity -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(min_value=0, max_value=1000),
    order=st.integers(min_value=0, max_value=1000),
    mode=st.sampled_from(MODES),
    folds=st.integers(min_value=1, max_value=2),
    scan=st.booleans(),
    screening=st.sampled_from([None, Screening(proposals=4)]),
)
def test_the_order_of_tells_does_not_matter(
    seed: int, order: int, mode: str, folds: int, scan: bool, screening: Screening | None
) -> None:
    def with_ties(candidate: Candidate) -> float:
        return round(distance(candidate), 1)

    options = {"reproduction": mode, "surgical_scan": scan, "screening": screening}
    first, other = (small(seed=seed, folds=folds, **options) for _ in range(2))
    run(first, with_ties)
    run(other, with_ties, order=np.random.default_rng(order))
    assert first.history == other.history
    assert first.ranked == other.ranked


def test_tell_returns_the_candidate_with_its_evaluation() -> None:
    search = small()
    told = search.tell(search.ask()[0], 0.25)
    assert told.fitness == 0.25
    assert search.history == [told]


def test_a_role_says_what_a_candidate_is_scored_for() -> None:
    search = run(small(folds=2), distance)
    roles = {candidate.origin.partition(":")[0]: candidate.role for candidate in search.history}
    assert roles.pop("rescore") == "rescore"
    assert roles.pop("exploitation") == "trial"
    assert {"recipe", "random", "offspring"} <= set(roles)
    assert set(roles.values()) == {"score"}


def test_the_state_is_a_function_of_seed_and_tells() -> None:
    first, other = run(small(seed=7), distance), run(small(seed=7), distance)
    assert first.history == other.history
    assert first.best == other.best


def test_another_seed_or_another_fitness_is_another_search() -> None:
    genomes = [
        [candidate.genome for candidate in run(search, fitness).history]
        for search, fitness in [
            (small(seed=7), distance),
            (small(seed=8), distance),
            (small(seed=7), lambda candidate: 1 - distance(candidate)),
        ]
    ]
    assert genomes[0] != genomes[1]
    assert genomes[0] != genomes[2]
    assert genomes[0][:5] == genomes[2][:5]  # nothing was told yet


def test_a_search_ignores_the_global_random_state() -> None:
    np.random.seed(0)  # noqa: NPY002
    search = run(small(), distance)
    np.random.seed(1)  # noqa: NPY002
    assert run(small(), distance).history == search.history


@pytest.mark.parametrize("both", [False, True])
def test_a_search_continues_from_a_copy_or_a_pickle_at_any_point(both: bool) -> None:
    options = {"folds": 2, "surgical_scan": both, "screening": Screening() if both else None}
    whole = run(small(**options), distance)
    search = small(**options)
    told = 0
    while not search.done:
        candidate = search.ask()[-1]
        search.tell(candidate, distance(candidate))
        told += 1
        if told % 7 == 0:
            search = pickle.loads(pickle.dumps(search))  # noqa: S301
        if told % 5 == 0:
            search = copy.deepcopy(search)
    assert search.history == whole.history


def test_asking_again_gives_the_same_candidates_until_they_are_told() -> None:
    search = small()
    asked = search.ask()
    assert search.ask() == asked
    asked.clear()  # the caller's list, not the optimizer's
    first, *others = search.ask()
    search.tell(first, 0.5)
    assert search.ask() == others


def test_numpy_floats_and_evaluations_are_fitness_too() -> None:
    plain, wrapped = small(), small()
    run(plain, distance)
    run(wrapped, lambda candidate: Evaluation(float(np.float64(distance(candidate)))))
    assert plain.history == wrapped.history
    search = small()
    search.tell(search.ask()[0], np.float32(0.5))
    assert search.best.evaluation == Evaluation(0.5)


# --- what is best -------------------------------------------------------------------------


def test_the_best_and_the_ranking_cover_all_that_was_told() -> None:
    search = run(small(), distance)
    assert len(search.ranked) == len(search.history) == search.planned_evaluations
    assert search.best.fitness == min(candidate.fitness for candidate in search.history)
    assert [c.fitness for c in search.ranked] == sorted(c.fitness for c in search.history)


def test_equal_fitness_is_ordered_by_brier_then_parameters_then_age() -> None:
    search = small(seed_recipes=False)
    evaluations = [
        Evaluation(0.2),
        Evaluation(0.2, brier=0.5, trained_parameters=10),
        Evaluation(0.2, brier=0.4, trained_parameters=20),
        Evaluation(0.2, brier=0.4, trained_parameters=10),
        Evaluation(0.2, brier=0.4, trained_parameters=10),
    ]
    for candidate, evaluation in zip(search.ask(), evaluations, strict=True):
        search.tell(candidate, evaluation)
    assert [candidate.id for candidate in search.ranked] == [3, 4, 2, 1, 0]
    assert [trial.parents for trial in search.ask()] == [(3,), (3,), (4,), (4,)]


# --- folds --------------------------------------------------------------------------------


def test_elites_are_scored_again_on_each_new_fold() -> None:
    search = run(small(folds=2), distance)
    for generation in range(1, 4):
        born = [candidate for candidate in search.history if candidate.generation == generation]
        assert Counter(candidate.origin for candidate in born) == {
            "rescore": 2,
            "exploitation": 4,
            "offspring": 3,
        }
        assert {candidate.fold for candidate in born} == {generation % 2}
        for again in (candidate for candidate in born if candidate.origin == "rescore"):
            (elite,) = again.parents
            assert search.history[elite].genome == again.genome
            assert search.history[elite].generation == generation - 1


def test_with_one_fold_nothing_is_scored_again() -> None:
    assert "rescore" not in {c.origin for c in run(small(folds=1), distance).history}


def lucky_on_fold_0(candidate: Candidate) -> float:
    """Candidate 3 is perfect on fold 0 and the worst of all on fold 1."""
    lucky = 3 in (candidate.id, *candidate.parents) and candidate.origin in ("random", "rescore")
    return (0.0 if candidate.fold == 0 else 0.9) if lucky else 0.5 + 0.001 * candidate.id


def test_an_elite_that_was_lucky_on_an_old_fold_loses_on_the_new_one() -> None:
    # Fault 3 of the released code: elites kept an old fold's score among those of the new fold.
    search = small(folds=2, seed_recipes=False, generations=2)
    for candidate in search.ask():
        search.tell(candidate, lucky_on_fold_0(candidate))
    assert search.best.id == 3
    lucky = search.best.genome
    while search.generation == 1:
        for candidate in search.ask():
            search.tell(candidate, lucky_on_fold_0(candidate))
    assert search.best.genome != lucky
    assert {candidate.fold for candidate in search.ranked} == {1}
    # On fold 1, candidate 5 is the lucky elite scored again, and 6 and 7 are the steps from it.
    # 6 replaced it, because 6 beats its new score; 8 is the other elite scored again.
    assert {parent for trial in search.ask() for parent in trial.parents} == {6, 8}
    assert search.history[5].genome == lucky
    assert {candidate.generation for candidate in run(search, lucky_on_fold_0).ranked} == {2}


def test_as_published_the_lucky_elite_keeps_its_old_score() -> None:
    search = small(folds=2, seed_recipes=False, generations=2, rescore_elites=False)
    run(search, lucky_on_fold_0)
    assert search.best.id == 3
    assert search.best.fold == search.best.generation == 0


def test_after_a_change_of_fold_parents_are_ranked_by_the_old_one() -> None:
    # On fold 1 every elite and trial is worse than any score of fold 0. If those were compared, the
    # elites would be drawn least often; ranked by fold 0 they are drawn most often.
    drawn: Counter[bool] = Counter()
    for seed in range(60):
        search = BioTune(BLOCKS, population=8, generations=1, elites=2, seed=seed, folds=2)
        run(search, lambda candidate: 0.9 if candidate.fold else 0.1 + 0.01 * candidate.id)
        for child in (candidate for candidate in search.history if candidate.origin == "offspring"):
            drawn.update(parent >= 8 or parent < 2 for parent in child.parents)
    # Ranks 0 and 1 of 8 hold (8 + 7)/36 = .42 of the first draws; ranks 6 and 7 hold .08.
    assert drawn[True] / drawn.total() > 0.35


def test_the_best_of_a_generation_in_progress_waits_for_its_fold_to_be_complete() -> None:
    search = small(folds=2, seed_recipes=False)
    for candidate in search.ask():
        search.tell(candidate, 0.5)
    search.tell(search.ask()[0], 0.0)
    assert search.best.generation == 0
    assert search.best.fitness == 0.5


# --- the surgical scan --------------------------------------------------------------------


def test_the_scan_comes_first_and_its_best_may_be_elites() -> None:
    search = small(surgical_scan=True)
    scan = search.ask()
    assert [candidate.origin for candidate in scan] == [f"scan:{block}" for block in BLOCKS]
    assert {(candidate.generation, candidate.fold) for candidate in scan} == {(0, 0)}
    for candidate in scan:
        search.tell(candidate, 0.1 * candidate.id)
    initial = search.ask()
    assert [candidate.origin for candidate in initial] == [
        "recipe:full 1x",
        "recipe:full 3x",
        *["combination"] * 3,
    ]
    assert search.generation == 0
    for candidate in initial:
        search.tell(candidate, 0.05 if candidate.origin == "combination" else 0.9)
    # The combinations 7, 8, 9 and the single blocks 0 and 1 are the population of five.
    assert [trial.parents for trial in search.ask()] == [(0,), (0,), (7,), (7,)]


def test_no_more_than_the_best_of_scan_and_initial_population_mate(
    pools: list[list[Individual]],
) -> None:
    search = run(small(surgical_scan=True, generations=1), distance)
    scored = sorted((founder for founder in search.history if not founder.generation), key=distance)
    assert len(scored) == 10
    assert {len(pool) for pool in pools} == {5}
    for pool in pools:
        mating = {parent.candidate.id for parent in pool if not parent.candidate.generation}
        assert mating <= {candidate.id for candidate in scored[:5]}


@pytest.mark.parametrize("outcome", ["diverged", "infeasible"])
def test_a_scan_that_fails_is_no_more_than_a_loss_of_time(outcome: str) -> None:
    def fitness(candidate: Candidate) -> float | Evaluation:
        if candidate.origin.startswith("scan:"):
            return Evaluation(0.0, outcome=outcome)
        return distance(candidate)

    search = run(small(surgical_scan=True), fitness)
    without = run(small(), distance)
    assert search.best.genome == without.best.genome
    assert len(search.history) == len(without.history) + len(BLOCKS)


@pytest.mark.parametrize("options", [{}, {"surgical_scan": True}, {"folds": 2}])
def test_who_was_an_elite_after_a_generation_is_remembered(options: dict[str, object]) -> None:
    longer, elites = small(generations=4, **options), set()
    while not longer.done:
        for candidate in longer.ask():
            if candidate.origin in ("exploitation", "rescore"):
                elites |= set(candidate.parents)  # the trials of a generation are of the elites
            longer.tell(candidate, distance(candidate))
    search = run(small(generations=3, **options), distance)
    assert search.elite_ids == elites
    assert elites < {candidate.id for candidate in search.history}


# --- failures -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("failed_generation", [0, 1, 3])
@pytest.mark.parametrize("both", [False, True])
def test_a_generation_of_failed_runs_does_not_stop_the_search(
    mode: str, folds: int, failed_generation: int, both: bool
) -> None:
    def fitness(candidate: Candidate) -> float | Evaluation:
        if candidate.generation == failed_generation:
            return Evaluation(math.inf, outcome="diverged")
        return distance(candidate)

    options = {"reproduction": mode, "surgical_scan": both}
    search = run(small(folds=folds, **options), fitness)
    assert len(search.history) == search.planned_evaluations
    if folds == 1 and not both:
        assert search.best.fitness == min(candidate.fitness for candidate in search.history)


def test_a_search_in_which_all_fails_still_ends_and_says_so() -> None:
    search = run(small(), lambda _: Evaluation(1.0, outcome="infeasible"))
    assert search.best.evaluation == Evaluation(1.0, outcome="infeasible")
    assert search.best.id == 0


@pytest.mark.parametrize("outcome", ["diverged", "infeasible", "stopped"])
def test_failed_and_stopped_runs_are_neither_best_nor_elite(outcome: str) -> None:
    search = small(seed_recipes=False)
    for candidate in search.ask():
        worst = candidate.id in (0, 1, 2)
        search.tell(candidate, Evaluation(0.0, outcome=outcome) if worst else 0.9)
    assert [candidate.id for candidate in search.ranked] == [3, 4, 0, 1, 2]
    assert {trial.parents for trial in search.ask()} == {(3,), (4,)}


# --- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": []}, r"blocks must be at least one name, all different, got \[\]"),
        ({"blocks": ["a", "a"]}, r"all different, got \['a', 'a'\]"),
        ({"blocks": "stem"}, "all different, got 'stem'"),
        ({"population": 1}, "population must be a whole number of at least 2, got 1"),
        ({"population": 4.0}, r"population must be a whole number of at least 2, got 4.0"),
        ({"generations": -1}, "generations must be a whole number of at least 0, got -1"),
        ({"elites": 0}, "elites must be a whole number of at least 1, got 0"),
        ({"elites": 10}, "elites must be fewer than the population 10, got 10"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": None}, "seed must be a whole number of at least 0, got None"),
        ({"folds": 0}, "folds must be a whole number of at least 1, got 0"),
        ({"folds": True}, "folds must be a whole number of at least 1, got True"),
        ({"head": "frozen"}, r"head must be one of \('evolved', 'trainable'\), got 'frozen'"),
        ({"reproduction": "x"}, r"reproduction must be one of \('batch', 'sequential'\), got 'x'"),
    ],
)
def test_bad_settings_are_refused_with_what_was_expected(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BioTune(**{"blocks": BLOCKS, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("fitness", [math.nan, math.inf, -math.inf, "0.5", None])
def test_a_fitness_that_is_no_finite_number_is_refused(fitness: object) -> None:
    search = small()
    candidate = search.ask()[2]
    with pytest.raises(ValueError, match=rf"candidate 2: expected a finite number.*{fitness}"):
        search.tell(candidate, fitness)  # type: ignore[arg-type]
    assert candidate in search.ask()


def test_a_candidate_is_told_once() -> None:
    search = small()
    candidate = search.ask()[1]
    search.tell(candidate, 0.5)
    with pytest.raises(ValueError, match=r"candidate 1 was told before.*0\.5 to stay, got 0\.4"):
        search.tell(candidate, 0.4)


def test_a_candidate_of_another_search_is_refused() -> None:
    search = small()
    stranger = small(seed=1).ask()[4]
    unknown = replace(search.ask()[0], id=99)
    for candidate in (stranger, unknown):
        with pytest.raises(ValueError, match="expected a candidate that this search asked for"):
            search.tell(candidate, 0.5)


def test_there_is_no_best_before_the_first_tell() -> None:
    search = small()
    assert search.ranked == search.history == []
    with pytest.raises(ValueError, match="expected at least one told candidate, got none"):
        _ = search.best


def test_an_untold_candidate_has_no_fitness() -> None:
    candidate = small().ask()[0]
    for read in (lambda: candidate.fitness, lambda: candidate.rank_key):
        with pytest.raises(ValueError, match="candidate 0 has no fitness yet"):
            read()
