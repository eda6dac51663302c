"""What a machine does once: reads its packages from a cold disk, prepares images, sets up CUDA.

A machine that is lent for minutes reads every library for the first time. Paid here, those seconds
are told, and fall into no other section's.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ProcessPoolExecutor

from benchmarks.gpu.setting import Findings, Row, Setting, say, synchronise
from benchmarks.gpu.steps import TrainingStep
from benchmarks.processes import forked_after


def run(setting: Setting) -> Findings:
    """Prepare the images of every size, and take each network's first steps meanwhile."""
    findings = Findings()
    networks = dict.fromkeys((*setting.sizes.networks, *setting.sizes.side_by_side))
    sizes = sorted({network.image_size for network in networks})
    with ProcessPoolExecutor(1, forked_after(__name__, "timm")) as pool:
        prepared = {size: pool.submit(_prepare, setting, size) for size in sizes}
        for network in setting.sizes.networks:
            for precision in setting.precisions:
                with findings.part(f"{network.name} in {precision}"):
                    say(f"{network}: first step in {precision}")
                    step = TrainingStep(network, setting.compute(precision))
                    first, second = (_seconds(setting, step) for _ in range(2))
                    findings.rows.append(_row(f"step of {network}", precision, first, second))
        for size, future in prepared.items():
            with findings.part(f"images of {size} px"):
                findings.rows.append(_prepared(size, future))
    findings.notes.append(
        "The first time, and the second where there is one. On a machine that has just started, "
        "most of it is reading packages from its disk."
    )
    return findings


def _prepare(setting: Setting, size: int) -> float:
    """In a process of its own: the seconds that preparing takes, imports included."""
    begin = time.perf_counter()
    setting.prepared(size)
    return time.perf_counter() - begin


def _prepared(size: int, future: Future[float]) -> Row:
    return _row(f"images of {size} px prepared", None, future.result(), None)


def _seconds(setting: Setting, step: TrainingStep) -> float:
    begin = time.perf_counter()
    step()
    synchronise(setting.device)
    return time.perf_counter() - begin


def _row(what: str, precision: str | None, first: float, second: float | None) -> Row:
    return {"what": what, "precision": precision, "s": first, "s, second time": second}
