"""Whole params files to begin from."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pipeline.artifacts import written_beside

PRESETS = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    """Of all presets."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def describe_presets() -> None:
    """Print every preset with the first line of its comment."""
    for name in preset_names():
        first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:22} {first.removeprefix('# ')}")


def write_preset(name: str, out: Path) -> None:
    """Write a preset as a params file; what was there is kept under another name.

    Args:
        name: of a preset.
        out: to write.

    Raises:
        ValueError: for an unknown name.
    """
    names = preset_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no preset {name!r}{hint} (`biotune init` lists them)")
    content = (PRESETS / f"{name}.yaml").read_bytes()
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
