"""The card: names that try to be more than names, and templates that people have edited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from biotune.data import PreparedImages
from biotune.finetuning.checkpoints import ModelCard
from biotune.plan import FineTunePlan
from pipeline.proof.model_card import TEMPLATE, CardFacts, card_template, code, model_card

SCORES = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "f1_macro", "cohen_kappa", "brier"), 0.5),
    "expected_calibration_error": 0.125,
}
AGREEMENT = {"label_agreement": 1.0, "largest_difference": 1e-6}
FIGURES = {
    **{"batch_1": AGREEMENT, "batch_2": AGREEMENT | {"label_agreement": 0.75}},
    "test_accuracy": 0.5,
    "int8": {"kept": False, "reason": "params.yaml says null"},
    "fp16": {"kept": True, "batch_32": AGREEMENT, "test_accuracy": 0.25},
}


class NoneLeftOut(PreparedImages):
    """Prepared images without a folder."""

    def rejected(self) -> list[object]:  # type: ignore[override]
        return []


def facts(*classes: str) -> CardFacts:
    """Of a model of these classes, each with one training and one test image."""
    count = len(classes)
    images = NoneLeftOut(
        folder=Path(),
        images=np.zeros((2 * count, 8, 8, 3), np.uint8),
        labels=np.arange(2 * count) % count,
        splits=np.array(["train"] * count + ["test"] * count),
        paths=[str(number) for number in range(2 * count)],
        classes=classes,
        image_size=8,
        source="digits",
        fingerprint="",
        original_sizes={"smallest": (8, 8), "largest": (9, 8)},
    )
    return CardFacts(
        model=ModelCard(
            backbone="toy",
            classes=classes,
            plan=FineTunePlan({"stem": None, "head": 2.0}),
            name="g0-1",
            image_size=8,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            validation_score=0.5,
            precision="fp32",
        ),
        hashes={"data": "abc"},
        evaluated={
            **SCORES,
            "accuracy_interval_95": (0.25, 0.75),
            "test_images": count,
            "trained_share": 0.5,
            "over_seeds": {"accuracy_mean": 0.5, "accuracy_sd": None},
            "best_recipe": {"name": "full 1x", **SCORES},
        },
        per_class=[
            {"class": name, "precision": "", "recall": "0.5", "f1": "0.5", "images": "1"}
            for name in classes
        ],
        searched={
            **{"evaluations": 4, "runs": 8, "stopped": 1},
            "winner_origin": "scan, conv_head alone 5x",
        },
        images=images,
    )


@pytest.mark.parametrize(
    "name",
    [
        *("a`<img src=x onerror=alert(1)>`", "a|b", "*bold*", "[link](x)", "two\r\nlines", "\\|"),
        "{{ model }}",
    ],
)
def test_a_name_means_nothing_but_itself(name: str) -> None:
    shown = code(name)
    inside = shown.removeprefix("<code>").removesuffix("</code>")
    assert len(inside) == len(shown) - len("<code></code>")
    assert not set(inside) & set("<>`|*[]\\\r\n")
    card = model_card(card_template(), facts(name, "plain"), FIGURES)
    assert f"Classes: {shown}, <code>plain</code>\n" in card
    assert f"| {shown} | 1 | 0 | 1 |\n" in card
    assert "Where it came from: <code>scan, conv&#95;head alone 5x</code>." in card
    assert f"| {shown} |  | 0.500 | 0.500 | 1 |\n" in card


def test_every_format_is_in_the_card_with_its_worst_batch_size_or_why_it_is_not_there() -> None:
    card = model_card(card_template(), facts("a", "b"), FIGURES)
    assert "| <code>model.onnx</code> | 75.00 % | 1.0e-06 | 0.5000 |\n" in card
    assert "| <code>model.int8.onnx</code> | not written: params.yaml says null |  |  |\n" in card
    assert "| <code>model.fp16.onnx</code> | 100.00 % | 1.0e-06 | 0.2500 |\n" in card
    assert "\n\nThe accuracy of the fp16 form was measured on a CPU, though it is meant" in card


def test_over_several_seeds_the_spread_is_said() -> None:
    several = {"accuracy_mean": 0.5, "accuracy_sd": 0.01}
    one_seed = facts("a", "b")
    evaluated = {**one_seed.evaluated, "over_seeds": several}
    spread = " Over all final training seeds: 0.5000 ± 0.0100.\n\n|"
    assert spread in model_card(card_template(), replace(one_seed, evaluated=evaluated), FIGURES)
    assert "(95 % interval 0.2500 to 0.7500).\n\n|" in model_card(
        card_template(), one_seed, FIGURES
    )


def test_text_that_somebody_adds_is_in_the_card(tmp_path: Path) -> None:
    edited = tmp_path / "model_card.md.j2"
    edited.write_text(TEMPLATE.read_text() + "\n## Contact\n\nThe lab of {{ model.name }}.\n")
    card = model_card(card_template(edited), facts("a", "b"), FIGURES)
    assert card.endswith("\n\n## Contact\n\nThe lab of g0-1.\n")


def test_a_template_that_cannot_be_used_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    edited = tmp_path / "model_card.md.j2"
    edited.write_text("# Card\n{% if model %}\n")
    with pytest.raises(ValueError, match=r"card\.md\.j2, line 2: .*endif.*correct the template"):
        card_template(edited)
    edited.write_text("{{ evaluatd.accuracy }}")
    with pytest.raises(ValueError, match=r"card\.md\.j2: 'evaluatd' is undefined; correct"):
        model_card(card_template(edited), facts("a", "b"), FIGURES)
