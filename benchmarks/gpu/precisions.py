"""Milliseconds of a training step: by precision, memory format, and compiled or not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import cast

import torch

from benchmarks.gpu.setting import Findings, Network, Row, Setting, in_turns, say
from benchmarks.gpu.steps import TrainingStep
from benchmarks.processes import forked_after
from biotune.finetuning.choices import Precision

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
COMPILED: Precision = "bf16"
"""What is compiled: the precision that ``auto`` takes on a GPU. Compiling takes a minute."""
RESERVE = 15
"""Seconds that are left of a section's time when compiling must have ended."""


def run(setting: Setting) -> Findings:
    """Time every variant, all blocks trained."""
    deadline = time.monotonic() + setting.limit - RESERVE
    findings = Findings()
    networks = [
        network for network in setting.sizes.networks if network.name in setting.sizes.compiled
    ]
    say(f"compiling {', '.join(network.name for network in networks)}, side by side")
    compiling = {network: _Compiling(setting, network) for network in networks}
    for network in setting.sizes.networks:
        with findings.part(network.name):
            findings.rows += _uncompiled(setting, network)
    for network, process in compiling.items():
        with findings.part(f"{network.name}, compiled"):
            seconds = process.wait(deadline)
            say(f"{network}: compiled in {seconds:.0f} s")
    for network, process in compiling.items():
        with findings.part(f"{network.name}, compiled"):
            findings.rows += process.time()
    findings.notes.append(
        "A step is forward, backward and fused Adam, all blocks trained, on images that are on "
        "the device; medians of turns. cuDNN is deterministic throughout, as in training. While "
        "the uncompiled steps are timed, other cores compile; compiled ones are timed beside their "
        "uncompiled twins."
    )
    return findings


def _uncompiled(setting: Setting, network: Network) -> list[Row]:
    say(f"{network}: {', '.join(setting.precisions)}, in both memory formats")
    variants: dict[str, Callable[[], object]] = {
        f"{precision} {name}": TrainingStep(
            network, setting.compute(precision), memory_format=memory_format
        )
        for precision in setting.precisions
        for name, memory_format in FORMATS.items()
    }
    measured = in_turns(variants, setting.device, setting.sizes.turns, setting.sizes.steps)
    rows: list[Row] = []
    for precision in cast("tuple[Precision, ...]", ("fp32", "tf32", "bf16")):
        for name in FORMATS:
            row: dict[str, str | float | None] = {
                "network": str(network),
                "precision": precision,
                "memory format": name,
                "compiled": "no",
            }
            if precision in setting.precisions:
                row |= _figures(measured[f"{precision} {name}"], measured["fp32 channels_last"])
            else:
                row |= {"ms a step": None, "× fp32": None}
                row |= {"remark": f"not applicable: {precision} is for cuda alone"}
            rows.append(row)
    return rows


def _figures(milliseconds: list[float], reference: list[float]) -> dict[str, float]:
    ratios = [before / after for before, after in zip(reference, milliseconds, strict=True)]
    return {"ms a step": statistics.median(milliseconds), "× fp32": statistics.median(ratios)}


class _Compiling:
    """A process that compiles a network, and then times it."""

    def __init__(self, setting: Setting, network: Network) -> None:
        self._pool = ProcessPoolExecutor(1, forked_after(__name__, "timm"))
        self._arguments = (setting, network)
        self._ready = self._pool.submit(_compile, *self._arguments)

    def wait(self, deadline: float) -> float:
        """Until it is compiled; the seconds that it took.

        Raises:
            TimeoutError: if it is not by then. What still runs is ended with the section.
        """
        try:
            return self._ready.result(timeout=max(deadline - time.monotonic(), 1))
        except TimeoutError as error:
            raise TimeoutError("not compiled within the section's time") from error

    def time(self) -> list[Row]:
        """The compiled step's row; none if it could not be compiled, which is said already."""
        if not self._ready.done() or self._ready.exception() is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            return []
        row = self._pool.submit(_time_compiled, *self._arguments).result()
        self._pool.shutdown()
        return [{**row, "remark": f"compiled in {self._ready.result():.0f} s"}]


_steps: dict[str, TrainingStep] = {}


def _compile(setting: Setting, network: Network) -> float:
    """In a process of its own: make both steps and run them once; the seconds it took."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    for compiled in (False, True):
        compute = setting.compute(COMPILED, compiled=compiled)
        step = TrainingStep(network, compute, compiler=setting.sizes.compiler)
        step().item()
        _steps["yes" if compiled else "no"] = step
    return time.perf_counter() - begin


def _time_compiled(setting: Setting, network: Network) -> dict[str, str | float]:
    """In the same process: the compiled step and the other in turns."""
    measured = in_turns(dict(_steps), setting.device, setting.sizes.turns, setting.sizes.steps)
    ratios = [no / yes for no, yes in zip(measured["no"], measured["yes"], strict=True)]
    return {
        "network": str(network),
        "precision": COMPILED,
        "memory format": "channels_last",
        "compiled": "yes",
        "ms a step": statistics.median(measured["yes"]),
        "× uncompiled": statistics.median(ratios),
    }
