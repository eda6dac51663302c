"""Whole params files to begin from, each written as what differs from the schema's defaults."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline.artifacts import written_beside
from pipeline.params import Params

PRESETS = Path(__file__).parents[1] / "presets"

WIDTH = 100
"""Of what is written, in characters."""


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def describe_presets() -> None:
    """Print every preset with the first line of its comment."""
    for name in preset_names():
        first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:22} {first.removeprefix('# ')}")


def resolved(name: str) -> tuple[str, Params]:
    """What a preset says to its reader, as lines of comment, and all of its parameters.

    A file's sections lie over those of its ``base``, if it names one, and these over the defaults.

    Raises:
        ValueError: for an unknown name.
    """
    names = preset_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no preset {name!r}{hint} (`biotune init` lists them)")
    comment, changes = _read(PRESETS / f"{name}.yaml")
    overlays = [changes]
    if base := changes.pop("base", None):
        words, below = _read(PRESETS / "bases" / f"{base}.yaml")
        comment, overlays = comment + words, [below, changes]
    content = Params().model_dump()
    for overlay in overlays:
        for section, values in overlay.items():
            content[section] = content.get(section, {}) | values
    return comment, Params.model_validate(content)


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """The lines of comment that a file begins with, and its content."""
    text = file.read_text(encoding="utf-8")
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))
    return "".join(comment), YAML(typ="safe", pure=True).load(text) or {}


def rendered(comment: str, params: Params) -> str:
    """A params file with every key, and what it means beside it, once."""
    sections, notes = [comment], set[str]()
    for name in Params.model_fields:
        lines = list(_lines(name, getattr(params, name)))
        column = max(len(line) for line, _ in lines) + 2
        text = ""
        for line, note in lines:
            new = "" if note in notes else note
            notes.add(note)
            wrapped = textwrap.wrap(new, WIDTH - column - 2, break_on_hyphens=False)
            beside = f"\n{'':{column}}".join(f"# {words}" for words in wrapped)
            text += f"{line:{column}}{beside}".rstrip() + "\n"
        sections.append(text)
    return "\n".join(sections)


def _lines(name: str, value: object, note: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    """Each line of YAML, and its note: a section's own keys first, then those that it inherits."""
    if not isinstance(value, BaseModel):
        plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)  # YAML's # is a comment
        yield f"{indent}{name}: {value if plain else json.dumps(value)}", note
        return
    fields = type(value).model_fields
    yield f"{indent}{name}:{'' if fields else ' {}'}", note
    for key in sorted(fields, key=lambda key: key not in type(value).__annotations__):
        kind, notes = fields[key].annotation, [fields[key].description or ""]
        if get_origin(kind) is Literal:
            notes.insert(0, " | ".join(get_args(kind)))
        yield from _lines(key, getattr(value, key), "; ".join(filter(None, notes)), indent + "  ")


def write_preset(name: str, out: Path) -> None:
    """Write a preset as a params file; what was there is kept under another name.

    Args:
        name: of a preset.
        out: to write.

    Raises:
        ValueError: for an unknown name.
    """
    content = rendered(*resolved(name)).encode()
    if out.exists() and out.read_bytes() != content:
        kept = _free_name(out)
        out.rename(kept)
        print(f"{out} is kept as {kept}")
    with written_beside(out) as beside:
        beside.write_bytes(content)
    print(f"wrote {out}; next: look through it, put your images where it says, and")
    print(f"  biotune prepare --params {out}")


def _free_name(file: Path) -> Path:
    """Such as params.yaml.old, or params.yaml.old2."""
    number = 1
    while True:
        kept = file.with_name(f"{file.name}.old{number if number > 1 else ''}")
        if not kept.exists():
            return kept
        number += 1
