"""Real training runs: with cached features as without, and once more, to the same bits."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.evaluator import draw_plans
from benchmarks.gpu.setting import Findings, Network, Row, Setting, say
from biotune.finetuning.choices import Precision
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import FitResult, TrainingSettings

CACHE_BYTES = 4 << 30
"""Room for the features of all images at any cut of the networks here."""


def run(setting: Setting) -> Findings:
    """Train plans whose early half is frozen: the cache is asked at every step."""
    findings = Findings()
    for network in setting.sizes.networks:
        for precision in setting.precisions:
            with findings.part(f"{network.name} in {precision}"):
                say(f"{network} in {precision}")
                rows = _compare(setting, network, precision)
                findings.rows += rows
                findings.faults += [
                    f"{row['network']} in {precision}, plan {row['plan']}: {what} is not so"
                    for row in rows
                    for what in ("cached = uncached", "rerun = run")
                    if row[what] is not True
                ]
    findings.notes.append(
        "Compared are all of a run's tensors at its best epoch, and every loss, score and Brier "
        "score; each run is a call of `Trainer.train` on digits."
    )
    return findings


def _compare(setting: Setting, network: Network, precision: Precision) -> list[Row]:
    network.require_weights()
    sizes = setting.sizes
    prepared, compute = setting.prepared(network.image_size), setting.compute(precision)
    cached = Trainer(prepared, network.name, network.weights, compute, CACHE_BYTES)
    uncached = Trainer(prepared, network.name, network.weights, compute)
    blocks = list(cached.backbone.blocks)
    settings = TrainingSettings(sizes.epochs, sizes.epochs, network.batch_size, 1e-3)
    rows: list[Row] = []
    for number, plan in enumerate(draw_plans(blocks, 1, len(blocks) // 2)):
        task = TrainingTask(plan, number, settings)
        # The cached one fills its cache in the first run, and finds it full in the second.
        runs = [
            trainer.train(task, keep_best=True) for trainer in (cached, uncached, cached, uncached)
        ]
        rows.append(
            {
                "network": network.name,
                "precision": precision,
                "plan": number,
                "frozen blocks": len(plan.frozen_blocks),
                "outcome": runs[0].curve.outcome,
                "cached = uncached": same_bits(runs[0], runs[1]) and same_bits(runs[2], runs[3]),
                "rerun = run": same_bits(runs[0], runs[2]) and same_bits(runs[1], runs[3]),
                "features, MiB": round(cached.cache.used / 2**20, 1),
            }
        )
    if cached.cache.used == 0:
        raise ValueError("nothing was cached, so there was nothing to compare")
    return rows


def same_bits(first: FitResult, second: FitResult) -> bool:
    """Whether two runs have the same result, apart from the seconds; a failed run has none."""
    if first.best_state is None or second.best_state is None:
        return False
    if replace(first.curve, seconds=0.0) != replace(second.curve, seconds=0.0):
        return False
    return first.best_state.keys() == second.best_state.keys() and all(
        torch.equal(tensor, second.best_state[name]) for name, tensor in first.best_state.items()
    )
