"""Which precision trains fastest on which hardware: measured, not assumed.

Written by ``python benchmarks/precision.py --write``, which replaces the rows of its own machine.
Milliseconds are of one training step of 32 images with all blocks trained, on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from biotune.finetuning.compute import Precision

MILLISECONDS: Mapping[tuple[str, str], Mapping[Precision, float]] = {
    ("dense", "avx512_bf16"): {"fp32": 1898.9, "bf16": 1113.7},
    ("depthwise", "avx512_bf16"): {"fp32": 206.2, "bf16": 373.0, "mixed_depthwise": 135.2},
}
