"""``card.md``: what a person must know before trusting the model with anything."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from biotune.data.prepared import PreparedImages
from biotune.data.splits import SPLITS
from biotune.deployment.bundle import MODEL_FILE, VARIANT_FILES
from biotune.finetuning.checkpoints import ModelCard


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from; all of it a function of the inputs.

    Attributes:
        model: the network and its plan.
        described: metrics and hashes, as the model's file holds them.
        evaluated: ``metrics.json`` of the evaluate stage.
        per_class: rows of its ``classes.csv``.
        searched: ``metrics.json`` of the search stage.
        images: prepared.
    """

    model: ModelCard
    described: Mapping[str, Any]
    evaluated: Mapping[str, Any]
    per_class: Sequence[Mapping[str, str]]
    searched: Mapping[str, Any]
    images: PreparedImages


def model_card(facts: CardFacts, verified: Mapping[str, Any]) -> str:
    """The card, in Markdown.

    Args:
        facts: see there.
        verified: the figures of ``verification.json``.
    """
    parts = [
        _introduction(facts),
        _data(facts.images),
        _quality(facts),
        _training(facts),
        _files(verified),
        _limits(facts),
        "## Where it came from\n\n"
        + _table(["", "SHA-256 or name"], [(k, v) for k, v in facts.described["hashes"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(facts: CardFacts) -> str:
    model = facts.model
    return (
        f"# Image classifier, {len(model.classes)} classes\n\n"
        f"The network {model.backbone} at {model.image_size} px, fine-tuned by BioTune on the "
        f"images of `{facts.images.source}`. It takes an image as uint8 RGB pixels of any size and "
        "returns a probability for each class.\n\n"
        f"Classes: {', '.join(_code(name) for name in model.classes)}\n\n"
        "## Intended use\n\n"
        "To tell these classes apart in images that come about as the training images did: the "
        "same kind of camera or scanner, subject and framing. Every answer is one of the classes: "
        "the model cannot say that an image is none of them. It is no medical device, and no "
        "decision about a person should rest on it alone."
    )


def _data(images: PreparedImages) -> str:
    counts = Counter(zip(images.labels.tolist(), images.splits.tolist(), strict=True))
    rows = [
        (_code(name), *(counts[label, split] for split in SPLITS))
        for label, name in enumerate(images.classes)
    ]
    rows.append(("all", *(len(images.indices(split)) for split in SPLITS)))
    smallest, largest = (
        "{} x {}".format(*images.original_sizes[w]) for w in ("smallest", "largest")
    )
    sizes = f"all {smallest}" if smallest == largest else f"{smallest} to {largest}"
    rejected = len(images.rejected())
    left_out = f" {rejected} images were left out." if rejected else ""
    return (
        f"## Data\n\n{_table(['class', *SPLITS], rows)}\n\n"
        f"They were {sizes} pixels (width x height), and were stretched to "
        f"{images.image_size} x {images.image_size}.{left_out} Nothing was chosen by the test "
        "images."
    )


def _quality(facts: CardFacts) -> str:
    found, recipe = facts.evaluated, facts.evaluated["best_recipe"]
    low, high = found["accuracy_interval_95"]
    names = ("balanced_accuracy", "f1_macro", "cohen_kappa", "expected_calibration_error", "brier")
    rows = [
        (name.replace("_", " "), f"{found[name]:.4f}", f"{recipe[name]:.4f}")
        for name in ("accuracy", *names)
    ]
    over = found["over_seeds"]
    spread = (
        f" Over all final training seeds: {over['accuracy_mean']:.4f} ± {over['accuracy_sd']:.4f}."
        if over["accuracy_sd"] is not None
        else ""
    )
    per_class = [
        (
            _code(row["class"]),
            *(_short(row[name]) for name in ("precision", "recall", "f1")),
            row["images"],
        )
        for row in facts.per_class
    ]
    return (
        f"## Quality on {found['test_images']} test images\n\n"
        f"Accuracy {found['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}).{spread}\n\n"
        + _table(["", f"this model: {facts.model.name}", f"best recipe: {recipe['name']}"], rows)
        + "\n\n"
        + _table(["class", "precision", "recall", "f1", "images"], per_class)
        + "\n\nCalibration: the expected calibration error is how far, on average, a stated "
        "probability is from how often it is right: "
        f"{100 * found['expected_calibration_error']:.1f} points here."
    )


def _training(facts: CardFacts) -> str:
    searched = facts.searched
    rows = [
        (_code(block), "frozen" if rate is None else f"{rate:g} x")
        for block, rate in facts.model.plan.items()
    ]
    return (
        "## How it was trained\n\n"
        f"Its plan, {facts.model.name}, is the winner of a search of {searched['evaluations']} "
        f"plans ({searched['runs']} training runs, {searched['stopped']} plans stopped early), "
        "confirmed on fresh seeds against the best known recipe. "
        f"{100 * facts.evaluated['trained_share']:.1f} % of the parameters were trained; frozen "
        "blocks were proved to be as pretrained, bit for bit.\n\n"
        + _table(["block", "learns at"], rows)
    )


def _files(verified: Mapping[str, Any]) -> str:
    rows = []
    for name, file in {"fp32": MODEL_FILE, **VARIANT_FILES}.items():
        found = verified if name == "fp32" else verified[name]
        if not found.get("kept", True):
            rows.append((_code(file), f"not written: {found['reason']}", "", ""))
            continue
        agreements = [found[key] for key in found if key.startswith("batch_")]
        rows.append(
            (
                _code(file),
                f"{100 * min(one['label_agreement'] for one in agreements):.2f} %",
                f"{max(one['largest_difference'] for one in agreements):.1e}",
                f"{found['test_accuracy']:.4f}",
            )
        )
    return (
        "## Files\n\nAgainst the network that was trained, on every original test image:\n\n"
        + _table(["", "same label", "largest difference", "test accuracy"], rows)
        + "\n\nThe accuracy of the fp16 form was measured on a CPU, though it is meant for GPUs. "
        "`biotune verify model.onnx` checks them anywhere, `biotune predict model.onnx "
        "IMAGES` uses them, `biotune serve model.onnx` serves them; `triton/` is a model "
        "repository for Triton."
    )


def _limits(facts: CardFacts) -> str:
    tested = [row for row in facts.per_class if int(row["images"])]
    weakest = min(tested, key=lambda row: float(row["recall"]))
    low, high = facts.evaluated["accuracy_interval_95"]
    return (
        "## Limits\n\n"
        f"- The test images are {facts.evaluated['test_images']}, from the same source as the "
        f"training images: accuracy elsewhere may lie outside {low:.3f} to {high:.3f}.\n"
        f"- The class it misses most often is {_code(weakest['class'])} (recall "
        f"{_short(weakest['recall'])}).\n"
        "- Images are stretched to a square: other proportions than in training look distorted.\n"
        "- Nothing was tested on images made to mislead, on other devices, or for fairness between "
        "groups."
    )


def _short(figure: str) -> str:
    return f"{float(figure):.3f}" if figure else ""


def _code(name: str) -> str:
    """A name as it is, whatever characters it has: as HTML, so that none of them means anything."""
    shown = html.escape(" ".join(name.split()), quote=False)
    for character in "|`*_[]\\":
        shown = shown.replace(character, f"&#{ord(character)};")
    return f"<code>{shown}</code>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
