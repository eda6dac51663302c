"""The shared words: what a plan and an evaluation accept, and how they compare."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune.plan import Evaluation, FineTunePlan

plans = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.none() | st.floats(min_value=1e-3, max_value=1e3),
    min_size=1,
    max_size=14,
).map(FineTunePlan)


@given(plans)
def test_a_plan_survives_json_and_pickling(plan: FineTunePlan) -> None:
    for restored in (FineTunePlan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan))):  # noqa: S301
        assert restored == plan
        assert hash(restored) == hash(plan)
        assert list(restored) == list(plan)
    assert copy.deepcopy(plan) == plan


@given(plans)
def test_every_block_is_either_trained_or_frozen(plan: FineTunePlan) -> None:
    assert sorted([*plan.trained_blocks, *plan.frozen_blocks]) == sorted(plan)
    assert all(plan[block] is not None for block in plan.trained_blocks)
    assert all(plan[block] is None for block in plan.frozen_blocks)


def test_a_plan_is_a_mapping_in_forward_order() -> None:
    plan = FineTunePlan({"stem": None, "layer1": 2.5, "head": 1})
    assert dict(plan) == {"stem": None, "layer1": 2.5, "head": 1.0}
    assert len(plan) == 3
    assert list(plan) == ["stem", "layer1", "head"]
    assert plan.to_json() == '{"stem": null, "layer1": 2.5, "head": 1.0}'
    assert str(plan) == "stem=frozen layer1=2.5x head=1x"
    assert repr(plan) == "FineTunePlan({'stem': None, 'layer1': 2.5, 'head': 1.0})"


def test_plans_of_another_order_or_type_differ() -> None:
    plan = FineTunePlan({"stem": 1.0, "head": 2.0})
    assert plan != FineTunePlan({"head": 2.0, "stem": 1.0})
    assert plan != FineTunePlan({"stem": 1.0, "head": None})
    assert plan != {"stem": 1.0, "head": 2.0}


def test_a_plan_does_not_change_with_the_mapping_it_was_made_of() -> None:
    multipliers: dict[str, float | None] = {"stem": 1.0, "head": 2.0}
    plan = FineTunePlan(multipliers)
    multipliers["stem"] = None
    assert plan["stem"] == 1.0


@pytest.mark.parametrize("multiplier", [0, -1.0, math.nan, math.inf, True, "1"])
def test_a_multiplier_must_be_positive_and_finite(multiplier: object) -> None:
    with pytest.raises(ValueError, match="block 'stem': the lr multiplier must be a positive"):
        FineTunePlan({"stem": multiplier})  # type: ignore[dict-item]


def test_a_plan_needs_blocks_with_names() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        FineTunePlan({})
    with pytest.raises(ValueError, match="non-empty string, got ''"):
        FineTunePlan({"": 1.0})


@pytest.mark.parametrize("text", ["[1.0]", "3", '"stem"', "{", '{"stem": "fast"}'])
def test_what_is_no_plan_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the decoder's own message, or ours)
        FineTunePlan.from_json(text)


def test_evaluations_are_ordered_by_outcome_fitness_brier_and_parameters() -> None:
    best_first = [
        Evaluation(0.1),
        Evaluation(0.2, brier=0.3, trained_parameters=9),
        Evaluation(0.2, brier=0.4, trained_parameters=5),
        Evaluation(0.2, brier=0.4, trained_parameters=6),
        Evaluation(0.2, brier=0.4),
        Evaluation(0.2, trained_parameters=1),
        Evaluation(0.05, outcome="stopped"),
        Evaluation(math.inf, outcome="diverged"),
    ]
    worst_first = best_first[::-1]
    assert sorted(worst_first, key=lambda evaluation: evaluation.rank_key) == best_first


def test_an_evaluation_refuses_what_is_no_score() -> None:
    with pytest.raises(ValueError, match="got NaN"):
        Evaluation(math.nan, outcome="diverged")
    with pytest.raises(ValueError, match="needs a finite fitness, got inf"):
        Evaluation(math.inf)
    with pytest.raises(ValueError, match="unknown outcome 'done'"):
        Evaluation(0.1, outcome="done")  # type: ignore[arg-type]
