"""The choices that a training run has by name.

They stand beside the modules that give them their meaning, and not in them, because those load
torch and scikit-learn, which whoever reads params need not wait for.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Metric = Literal["balanced_accuracy", "accuracy", "f1_macro", "auroc"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
"""What plans may be ranked by; see :mod:`biotune.finetuning.metrics`. The method's own is balanced
accuracy."""

ClassWeights = Literal["none", "balanced", "effective_number"]
CLASS_WEIGHTS: Final[tuple[ClassWeights, ...]] = get_args(ClassWeights)
"""How much each class counts in the loss; see :mod:`biotune.finetuning.losses`."""

Augmentation = Literal["none", "flip", "randaugment", "trivialaugment"]
AUGMENTATIONS: Final[tuple[Augmentation, ...]] = get_args(Augmentation)
"""``flip``: left and right exchanged, for half of the images. ``randaugment`` (arXiv 1909.13719)
and ``trivialaugment`` (wide; arXiv 2103.10158): the same, and then torchvision's of that name."""

Precision = Literal["fp32", "tf32", "bf16"]
"""``fp32``: IEEE single precision everywhere. ``tf32``: its products with 10 bits of mantissa, on
CUDA. ``bf16``: bfloat16 autocast."""
