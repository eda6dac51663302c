"""``card.md``: what a person must know before trusting the model with anything.

Its text is ``model_card.md.j2``, beside this file.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError

from biotune.data.prepared import PreparedImages
from biotune.data.splits import SPLITS
from biotune.finetuning.checkpoints import ModelCard
from pipeline.proof.agreement import by_format, worst
from pipeline.proof.export_formats import FORMATS

TEMPLATE: Final = Path(__file__).with_name("model_card.md.j2")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card is written from; all of it a function of the inputs.

    Attributes:
        model: the network and its plan.
        hashes: what it came from.
        evaluated: ``metrics.json`` of the evaluate stage.
        per_class: rows of its ``classes.csv``.
        searched: ``metrics.json`` of the search stage.
        images: prepared.
    """

    model: ModelCard
    hashes: Mapping[str, str]
    evaluated: Mapping[str, Any]
    per_class: Sequence[Mapping[str, str]]
    searched: Mapping[str, Any]
    images: PreparedImages


def card_template(file: Path = TEMPLATE) -> Template:
    """The template of the card, read and checked.

    Raises:
        ValueError: naming file and line, if it is no template of Jinja's.
    """
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown; what comes from the data goes through `code`
    )
    environment.filters |= {"code": code, "fixed": fixed}
    try:
        return environment.get_template(file.name)
    except TemplateError as error:
        line = getattr(error, "lineno", "")
        raise ValueError(f"{file}, line {line}: {error}; correct the template") from error


def model_card(template: Template, facts: CardFacts, figures: Mapping[str, Any]) -> str:
    """The card, in Markdown.

    Args:
        template: of :func:`card_template`.
        facts: see there; all of them can be filled in, under their names.
        figures: of the proof, as ``verification.json`` has them.

    Raises:
        ValueError: if the template asks for something that there is not.
    """
    images = facts.images
    smallest, largest = (
        "{} x {}".format(*images.original_sizes[which]) for which in ("smallest", "largest")
    )
    tested = [row for row in facts.per_class if int(row["images"])]
    filled_in = {
        **vars(facts),
        "counts": _counts(images),
        "original_sizes": f"all {smallest}" if smallest == largest else f"{smallest} to {largest}",
        "rejected": len(images.rejected()),
        "interval": facts.evaluated["accuracy_interval_95"],
        "recipe": facts.evaluated["best_recipe"],
        "weakest": min(tested, key=lambda row: float(row["recall"])),
        "formats": [
            {**vars(FORMATS[name]), **of_format, "agreement": worst(of_format)}
            for name, of_format in by_format(figures).items()
        ],
    }
    try:
        return template.render(filled_in)
    except TemplateError as error:
        raise ValueError(f"{template.filename}: {error}; correct the template") from error


def _counts(images: PreparedImages) -> list[dict[str, Any]]:
    """How many images of each class are in each split."""
    counts = Counter(zip(images.labels.tolist(), images.splits.tolist(), strict=True))
    return [
        {"name": name, **{split: counts[label, split] for split in SPLITS}}
        for label, name in enumerate(images.classes)
    ]


def fixed(figure: str | float, digits: int) -> str:
    """A number, or the text of one, with so many digits after the point; empty if it is empty."""
    return "" if figure == "" else f"{float(figure):.{digits}f}"


def code(name: str) -> str:
    """A name as it is, whatever characters it has: as HTML, so that none of them means anything."""
    shown = html.escape(" ".join(name.split()), quote=False)
    for character in "|`*_[]\\":
        shown = shown.replace(character, f"&#{ord(character)};")
    return f"<code>{shown}</code>"
