"""``python -m benchmarks.gpu``: every section, as Markdown and JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import torch

from benchmarks.gpu import (
    bits,
    evaluators,
    first_use,
    images,
    library_tests,
    memory,
    peak,
    precisions,
    side_by_side,
)
from benchmarks.gpu.running import Section, as_markdown, run_sections
from benchmarks.gpu.setting import FULL, TINY, Setting
from benchmarks.reporting import check_device, describe_machine, one_line, options_of_command
from biotune.files import put_file, scratch_beside

SECTIONS: Final[Mapping[str, Section]] = {
    "first use": Section(first_use.run, 120),
    "gpu tests": Section(library_tests.run, 60),
    "bits": Section(bits.run, 90),
    "memory": Section(memory.run, 40),
    "images": Section(images.run, 30),
    "peak": Section(peak.run, 45),
    "side by side": Section(side_by_side.run, 80),
    "evaluator": Section(evaluators.run, 150),
    "precisions": Section(precisions.run, 150),
}
"""By name, with the seconds that each may take on a GPU. What may be missed is at the end."""

IN_ALL: Final = 430
"""Seconds that all may take together: a machine is lent for minutes, and a cold disk takes its
share of the first sections."""

MEMORY_DISK: Final = Path("/dev/shm")  # noqa: S108
"""Where prepared images are written if it is there: the disk of a lent machine may be slow."""


def describe_device(device: str) -> dict[str, str]:
    """The machine, and its GPU where that is what is used."""
    machine = describe_machine()
    kind = torch.device(device)
    if kind.type == "cpu":
        return machine
    properties = torch.cuda.get_device_properties(kind)
    return machine | {
        "gpu": properties.name,
        "gpu memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }


def check(
    sections: Mapping[str, Section],
    setting: Setting,
    heading: Mapping[str, Any],
    json_file: Path,
) -> bool:
    """Run the sections; print each when it is done, and write all that are; whether all passed.

    Args:
        sections: name → section.
        setting: of all.
        heading: what the JSON says beside the sections.
        json_file: has a key for every section from the first one on.
    """
    reports: dict[str, dict[str, Any]] = {name: {"status": "not run"} for name in sections}
    for name, report in run_sections(sections, setting, IN_ALL):
        reports[name] = asdict(report)
        click.echo(f"\n{as_markdown(name, report)}")
        # Now, not at the end: what is paid for is kept whatever becomes of the rest.
        _write(json_file, {**heading, "sections": reports})
    return all(report["status"] == "passed" for report in reports.values())


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with scratch_beside(path) as scratch:
        fresh = scratch / path.name
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        put_file(fresh, path)


@click.command()
@click.option(
    "--device",
    default="cuda",
    show_default=True,
    callback=check_device,
    help="cuda, cuda:1 or cpu.",
)
@click.option("--tiny", is_flag=True, help="The same in small, to try the check itself.")
@click.option(
    "--section",
    "chosen",
    multiple=True,
    type=click.Choice(list(SECTIONS)),
    help="Only this one; may be given several times.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gpu-check.json"),
    show_default=True,
    help="Also write all figures here.",
)
def main(device: str, tiny: bool, chosen: tuple[str, ...], json_file: Path) -> None:
    """Check and measure all that this code does on a GPU; Markdown tables.

    A section that fails makes the exit code 1; the others go on.

    \b
    Examples:
      python -m benchmarks.gpu
      python -m benchmarks.gpu --device cuda:1 --json second.json
      python -m benchmarks.gpu --section memory --section "side by side"
      python -m benchmarks.gpu --device cpu --tiny
    """
    machine, options = describe_device(device), options_of_command()
    click.echo(f"# GPU check\n\n{one_line(machine)}\n\n{one_line(options)}")
    disk = MEMORY_DISK if torch.device(device).type == "cuda" and MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=disk) as work:
        setting = Setting(device, TINY if tiny else FULL, Path(work), limit=0)
        sections = {name: SECTIONS[name] for name in SECTIONS if name in (chosen or SECTIONS)}
        passed = check(sections, setting, {"machine": machine, "options": options}, json_file)
    click.echo(f"\n{'Every section passed.' if passed else 'NOT every section passed.'}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
