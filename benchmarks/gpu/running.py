"""Run each section in a process of its own, within its time, and report on all of them."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import click
import torch

from benchmarks.gpu.setting import Findings, Row, Setting
from benchmarks.processes import forked_after
from benchmarks.reporting import markdown_table

CPU_PATIENCE = 10
"""A section may take this many times its seconds where there is no GPU to pay for."""
ENDING = 10
"""Seconds that a section's process gets to end by itself once it has reported."""


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Attributes:
        run: a function of a module, which other processes can import.
        seconds: that it may take on a GPU.
    """

    run: Callable[[Setting], Findings]
    seconds: float


@dataclass(frozen=True)
class Report:
    """How a section ended.

    Attributes:
        status: ``passed`` or ``failed``.
        seconds: its wall time, the start of its process included.
        rows: what it measured.
        notes: on how to read them.
        faults: why it failed; none if it passed.
    """

    status: Literal["passed", "failed"]
    seconds: float
    rows: list[Row]
    notes: list[str]
    faults: list[str]


def run_sections(
    sections: Mapping[str, Section], setting: Setting, seconds: float
) -> Iterator[tuple[str, Report]]:
    """Run sections in turn, whatever becomes of those before; each one's name and report.

    Args:
        sections: name → section.
        setting: of all; the limit is each section's.
        seconds: that all may take together on a GPU; a section that gets none of them has failed.
    """
    patience = 1 if setting.on_gpu else CPU_PATIENCE
    deadline = time.monotonic() + seconds * patience
    # Not forks of this process, which may have looked at CUDA: they could not use it.
    context = forked_after("timm", *(section.run.__module__ for section in sections.values()))
    for number, (name, section) in enumerate(sections.items(), start=1):
        limit = max(0.0, min(section.seconds * patience, deadline - time.monotonic()))
        click.echo(f"[{number}/{len(sections)}] {name}, at most {limit:.0f} s", err=True)
        report = _run(context, section, replace(setting, limit=limit))
        faults = "".join(f"\n  fault: {fault}" for fault in report.faults)
        click.echo(f"  {report.status} after {report.seconds:.1f} s{faults}", err=True)
        yield name, report


def _run(context: ForkServerContext, section: Section, setting: Setting) -> Report:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(section.run, setting, sender))
    begin = time.monotonic()
    process.start()
    sender.close()
    try:
        if receiver.poll(setting.limit):
            findings = receiver.recv()
        else:
            findings = Findings(faults=[f"it took longer than its {setting.limit:.0f} s"])
        ended = time.monotonic()
        process.join(ENDING if not findings.faults else 0)
    except EOFError:
        ended = time.monotonic()
        process.join(ENDING)
        findings = Findings(faults=[f"its process ended by itself, with {process.exitcode}"])
    finally:
        _end(process)
    if not findings.rows and not findings.faults:
        findings.faults.append("it has found nothing")
    status: Literal["passed", "failed"] = "failed" if findings.faults else "passed"
    seconds = round(ended - begin, 1)
    return Report(status, seconds, findings.rows, findings.notes, findings.faults)


def _work(run: Callable[[Setting], Findings], setting: Setting, sender: Connection) -> None:
    """A section's process: the findings go through the pipe, all that is printed to stderr."""
    os.setsid()  # so that what it starts can be ended with it
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)  # as in a worker of a search
    try:
        findings = run(setting)
    except BaseException as error:
        traceback.print_exc()
        findings = Findings(faults=[f"{type(error).__name__}: {error}"])
    sender.send(findings)


def _end(process: BaseProcess) -> None:
    """End a section's process, and whatever it has started and left."""
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def as_markdown(name: str, report: Report) -> str:
    """A heading, the faults, a table and the notes."""
    parts = [f"## {name}: {report.status}, {report.seconds:.1f} s"]
    parts += [f"**Fault:** {fault}" for fault in report.faults]
    if report.rows:
        columns = list(dict.fromkeys(column for row in report.rows for column in row))
        cells = [[_cell(row.get(column, ""), column) for column in columns] for row in report.rows]
        parts.append(markdown_table(columns, cells))
    return "\n\n".join(parts + report.notes)


def _cell(value: Any, column: str) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.1%}" if column.startswith("share") else f"{value:.4g}"
    return str(value).replace("|", "\\|")
