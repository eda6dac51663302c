"""What training a network takes, in time and memory, from a few real steps on noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from biotune.finetuning.backbones import build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import network_input
from biotune.finetuning.freezing import apply_plan, set_training_mode
from biotune.plan import FineTunePlan

TIMED_STEPS = 3
CPU_BATCH = 4
"""Images of a timed step on a CPU, where time grows with their number; a GPU gets whole batches."""


@dataclass(frozen=True)
class StepCost:
    """What full fine-tuning takes, the most that any plan does.

    Attributes:
        train_seconds: of one image in a training step.
        predict_seconds: of one image without gradients.
        fixed_bytes: weights, gradients, Adam's two moments, and the copies of the weights that a
            worker keeps: the pretrained ones, those at the run's start, and the best.
        image_bytes: what is kept of one image for the backward pass.
    """

    train_seconds: float
    predict_seconds: float
    fixed_bytes: int
    image_bytes: int


def step_cost(
    backbone: str, classes: int, image_size: int, batch_size: int, compute: Compute
) -> StepCost:
    """Time three steps of full fine-tuning, and three without gradients, after one to warm up.

    Args:
        backbone: its name; weights are random, which costs the same.
        classes: of the head.
        image_size: in pixels.
        batch_size: of the training that is planned.
        compute: device and precision; one thread, as in a worker.

    Raises:
        ValueError: for an unknown backbone, or images that are too small for it.
    """
    on_cpu = compute.device_type == "cpu"
    network = build_backbone(backbone, "none", classes, for_cpu=on_cpu)
    network.check_image_size(image_size)
    network.to(compute.device)
    count = batch_size if compute.device_type == "cuda" else min(batch_size, CPU_BATCH)
    noise = np.random.default_rng(0).integers(0, 256, (count, image_size, image_size, 3))
    images = network_input(noise.astype(np.uint8), network, compute)
    targets = torch.arange(count, device=compute.device) % classes
    plan = FineTunePlan(dict.fromkeys(network.blocks, 1.0))
    optimizer = torch.optim.Adam(apply_plan(network, plan, 1e-4), fused=True)
    addresses = {t.untyped_storage().data_ptr() for t in network.network.state_dict().values()}
    kept: dict[int, UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in addresses:  # weights are no image's
            kept[storage.data_ptr()] = storage
        return tensor

    def train() -> None:
        with compute.autocast():
            logits = network.run_layers(0, len(network.layers), images)
            loss = network.loss(logits, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def predict() -> None:
        with torch.no_grad(), compute.autocast():
            network.run_layers(0, len(network.layers), images)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        set_training_mode(network, plan)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train()
        image_bytes = sum(storage.nbytes() for storage in kept.values()) // count
        kept.clear()
        training = _median_seconds(train, compute)
        network.network.eval()
        predict()
        predicting = _median_seconds(predict, compute)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{count} images of {image_size} pixels do not fit into the device's memory; choose a "
            "smaller batch_size"
        ) from error
    finally:
        torch.set_num_threads(threads)
    weights = sum(p.numel() * p.element_size() for p in network.network.parameters())
    return StepCost(training / count, predicting / count, 7 * weights, image_bytes)


def _median_seconds(step: Callable[[], None], compute: Compute) -> float:
    seconds = []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        step()
        if compute.device_type == "cuda":
            torch.cuda.synchronize(compute.device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
