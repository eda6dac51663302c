"""Memory of a training, and that all of it comes back after a real out-of-memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from benchmarks.gpu.bits import same_bits
from benchmarks.gpu.setting import Findings, Network, Row, Setting, say
from benchmarks.reporting import compute_of
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import FitResult, TrainingSettings
from biotune.plan import FineTunePlan

MIB = 2**20
ROOM = 1.25
"""Of the card's memory, a run that must fail gets this many times what a smaller one took."""
TOLERANCE = 0.01
"""Share of a training's peak by which what is held afterwards may differ."""


def run(setting: Setting) -> Findings:
    """Train, run out of memory, train again; what is held and free after each."""
    findings = Findings()
    for network in setting.sizes.networks:
        with findings.part(network.name):
            _provoke(setting, network, findings)
    findings.notes.append(
        "All blocks trained, in the precision that `auto` chooses. Held is what torch's allocator "
        "has given out when the run is over, reserved the most that it had of the card. "
        + (
            f"The failing run has all training images in one batch, and of the card {ROOM} times "
            "what the first run reserved."
            if setting.on_gpu
            else "On a CPU the failing run asks torch for memory that no machine has, in its last "
            "layer; how much a process holds is not torch's to say there."
        )
    )
    return findings


def _provoke(setting: Setting, network: Network, findings: Findings) -> None:
    prepared = setting.prepared(network.image_size)
    compute = compute_of("auto", network.name, setting.device)
    trainer = Trainer(prepared, network.name, "none", compute)
    plan = FineTunePlan(dict.fromkeys(trainer.backbone.blocks, 1.0))
    watch = _Watch(setting, network)

    def train(batch_size: int) -> FitResult:
        settings = TrainingSettings(1, 1, batch_size, 1e-3)
        return trainer.train(TrainingTask(plan, 0, settings), keep_best=True)

    first = watch.row("training", lambda: train(network.batch_size))
    # A run leaves its last gradients: from here on, they are always there.
    watch.row("training, second time", lambda: train(network.batch_size))
    with _too_little_memory(setting, trainer, watch.reserved):
        failed = watch.row("out of memory", lambda: train(setting.sizes.images))
    last = watch.row("training, after it", lambda: train(network.batch_size))
    findings.rows += watch.rows
    if failed.curve.outcome != "infeasible" or len(failed.out_of_memory) != 2:
        findings.faults.append(
            f"{network.name}: a run without memory ended as {failed.curve.outcome}, having said "
            f"{list(failed.out_of_memory)}, in the place of twice that memory ran out"
        )
    if not same_bits(first, last):
        findings.faults.append(f"{network.name}: trained after out-of-memory to other bits")
    left = max(watch.held[2:]) - watch.held[1]
    if left > TOLERANCE * watch.peak:
        findings.faults.append(f"{network.name}: {left / MIB:.0f} MiB did not come back")


class _Watch:
    """Notes what each run takes and leaves.

    Attributes:
        rows: one for each run.
        reserved: bytes that the allocator had of the card at most, in the last run.
        peak: the most that it had given out, likewise.
        held: bytes that it has given out still, after each run.
    """

    def __init__(self, setting: Setting, network: Network) -> None:
        self.setting, self.network = setting, network
        self.rows: list[Row] = []
        self.reserved = self.peak = 0
        self.held: list[int] = []

    def row(self, moment: str, train: Callable[[], FitResult]) -> FitResult:
        say(f"{self.network}: {moment}")
        device, on_gpu = self.setting.device, self.setting.on_gpu
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        result = train()
        row: dict[str, str | int | None] = {
            "network": str(self.network),
            "run": moment,
            "outcome": result.curve.outcome,
        }
        self.held.append(torch.cuda.memory_allocated(device) if on_gpu else 0)
        figures = dict.fromkeys(("held, MiB", "peak, MiB", "reserved, MiB", "free, MiB"))
        if on_gpu:
            self.peak = torch.cuda.max_memory_allocated(device)
            self.reserved = torch.cuda.max_memory_reserved(device)
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(device)
            sizes = (self.held[-1], self.peak, self.reserved, free)
            self.rows.append(row | dict(zip(figures, (b // MIB for b in sizes), strict=True)))
        else:
            remark = "figures not applicable: torch counts a GPU's memory alone"
            self.rows.append(row | figures | {"remark": remark})
        return result


@contextmanager
def _too_little_memory(setting: Setting, trainer: Trainer, reserved: int) -> Iterator[None]:
    """In here a large batch cannot be trained on."""
    if setting.on_gpu:
        device = torch.device(setting.device)
        # torch.cuda.set_per_process_memory_fraction takes no device without an index.
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        share = min(ROOM * reserved / total, 1.0)
        torch.cuda.set_per_process_memory_fraction(share, index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
        return

    def ask(module: nn.Module, inputs: object) -> None:
        torch.empty(1 << 60)

    hook = trainer.backbone.layers[-1].register_forward_pre_hook(ask)
    try:
        yield
    finally:
        hook.remove()
