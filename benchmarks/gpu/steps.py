"""One training step of a network, as ``fit`` makes it: forward, backward, fused Adam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.setting import CLASSES, Network
from biotune.finetuning.backbones import build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import network_input
from biotune.finetuning.freezing import apply_plan, set_training_mode
from biotune.plan import FineTunePlan


class TrainingStep:
    """Full fine-tuning of a network with random weights on noise, a step a call.

    Args:
        network: name, image size and batch size.
        compute: device, precision, and whether the layers are compiled.
        memory_format: of network and images; ours are channels_last.
        compiler: what compiles, if compiled.

    Attributes:
        images: gives the batch of a step, float [b, 3, S, S]; by default the same each time, which
            is on the device.
    """

    def __init__(
        self,
        network: Network,
        compute: Compute,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        compiler: str = "inductor",
    ) -> None:
        self.compute = compute
        compute.set_up()
        self.backbone = build_backbone(network.name, "none", CLASSES)
        self.backbone.to(compute.device)
        self.backbone.network.to(memory_format=memory_format)
        if compute.compile:
            for layer in self.backbone.layers:
                layer.compile(backend=compiler)
        plan = FineTunePlan(dict.fromkeys(self.backbone.blocks, 1.0))
        self.optimizer = torch.optim.Adam(apply_plan(self.backbone, plan, 1e-4), fused=True)
        set_training_mode(self.backbone, plan)
        count, size = network.batch_size, network.image_size
        noise = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        batch = network_input(noise, self.backbone, compute).contiguous(memory_format=memory_format)
        self.images: Callable[[], Tensor] = lambda: batch
        self.targets = torch.arange(count, device=compute.device) % CLASSES

    def __call__(self) -> Tensor:
        """Train on a batch; the loss, which is on the device."""
        self.compute.set_up()  # another variant may have computed in another precision
        images = self.images()
        with self.compute.autocast():
            logits = self.backbone.run_layers(0, len(self.backbone.layers), images)
            loss = self.backbone.loss(logits, self.targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()
