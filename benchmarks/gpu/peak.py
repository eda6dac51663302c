"""How much of what the device can compute, measured too, whole training steps make use of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.setting import Findings, Network, Row, Setting, in_turns, say
from benchmarks.gpu.steps import TrainingStep
from benchmarks.peak import BACKWARD_FLOP
from biotune.finetuning.choices import Precision

PRODUCT, CONVOLUTION = "matrix product", "3 x 3 convolution"


def run(setting: Setting) -> Findings:
    """Measure the peak in each precision, and every network's step in the same turns."""
    findings = Findings()
    peaks: dict[Precision, dict[str, float]] = {}
    for precision in setting.precisions:
        with findings.part(f"peak in {precision}"):
            say(f"peak in {precision}")
            peaks[precision] = _peaks(setting, precision)
            findings.rows += [
                {"what": f"peak: {work}", "precision": precision, "TFLOP/s": rate}
                for work, rate in peaks[precision].items()
            ]
    for network in setting.sizes.networks:
        with findings.part(network.name):
            say(str(network))
            findings.rows += _achieved(setting, network, peaks)
    if not setting.on_gpu:
        remark = "not applicable: tf32 is for cuda alone"
        findings.rows.append(
            {"what": "all", "precision": "tf32", "TFLOP/s": None, "remark": remark}
        )
    findings.notes.append(
        "Peaks are the best turn of a large product of random matrices and of a 3 × 3 convolution "
        "in channels_last. A network's rate is the operations of its convolutions and linear "
        "layers, counted in fp32, over the best turn of its whole step."
    )
    return findings


def _peaks(setting: Setting, precision: Precision) -> dict[str, float]:
    """10^12 operations a second of the best turn, by kind of work."""
    sizes, compute = setting.sizes, setting.compute(precision)
    compute.set_up()
    make = partial(torch.randn, device=setting.device)
    left, right = (make(sizes.matrix, sizes.matrix).to(compute.dtype) for _ in range(2))
    images, channels, pixels = sizes.maps
    maps, kernel = (
        make(shape).to(compute.dtype, memory_format=torch.channels_last)
        for shape in [(images, channels, pixels, pixels), (channels, channels, 3, 3)]
    )
    work: dict[str, Callable[[], object]] = {
        PRODUCT: partial(torch.mm, left, right),
        CONVOLUTION: partial(conv2d, maps, kernel, padding=1),
    }
    operations = {
        PRODUCT: 2 * sizes.matrix**3,
        CONVOLUTION: 2 * images * pixels**2 * channels**2 * 9,
    }
    measured = in_turns(work, setting.device, sizes.turns, sizes.steps)
    return {name: operations[name] / min(measured[name]) / 1e9 for name in work}


def _achieved(
    setting: Setting, network: Network, peaks: dict[Precision, dict[str, float]]
) -> list[Row]:
    counter = FlopCounterMode(display=False, custom_mapping=BACKWARD_FLOP)
    step = TrainingStep(network, setting.compute("fp32"))
    with counter:
        step()
    operations = counter.get_total_flops()
    steps: dict[str, Callable[[], object]] = {
        precision: TrainingStep(network, setting.compute(precision)) for precision in peaks
    }
    measured = in_turns(steps, setting.device, setting.sizes.turns, setting.sizes.steps)
    rows: list[Row] = []
    for precision, peak in peaks.items():
        rate = operations / min(measured[precision]) / 1e9
        rows.append(
            {
                "what": f"training step of {network}",
                "precision": precision,
                "TFLOP/s": rate,
                "TFLOP a step": operations / 1e12,
                "ms a step": min(measured[precision]),
                f"share of {PRODUCT}": rate / peak[PRODUCT],
                f"share of {CONVOLUTION}": rate / peak[CONVOLUTION],
            }
        )
    return rows
