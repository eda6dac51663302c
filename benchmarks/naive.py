"""The evaluator that ours is measured against: competent, ordinary code, written for this purpose.

It does what tutorials and most research code do. It was written from a description of the method
alone, and nothing in it is slow on purpose:

- images are files, decoded by Pillow every epoch in a torch DataLoader: in the main process, or, so
  that a GPU need not wait, in some worker processes that pin them;
- every run builds its network anew from the weights;
- float32 (on a GPU as torch has it by default: convolutions in tf32), torch's default memory
  format, and Adam as it comes, one param group per trained block;
- frozen blocks have ``requires_grad`` off, and nothing more: ``network.train()`` leaves their
  BatchNorm in training mode, so that it uses and updates the statistics of each batch;
- every epoch validates the whole network, the best state is saved to disk, and loaded at the end.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from joblib import cpu_count
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from biotune.data.prepared import PreparedImages
from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan

Batches = DataLoader[tuple[Tensor, Tensor]]

LOADERS = 8
"""Processes that decode for a GPU, where there are as many cores."""


class NaiveEvaluator:
    """Trains plans from image files.

    Args:
        images: folder that :func:`write_image_files` wrote.
        image_size: height and width in pixels to which images are resized, if they are not so yet.
        backbone: name of the network.
        weights: its pretrained weights.
        checkpoint: file to save the best state in.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    def __init__(
        self,
        images: Path,
        image_size: int,
        backbone: str,
        weights: str,
        checkpoint: Path,
        device: str = "cpu",
    ) -> None:
        self.backbone, self.weights, self.checkpoint = backbone, weights, checkpoint
        self.device = torch.device(device)
        expects = build_backbone(backbone, weights, 2)
        transform = transforms.Compose(
            [
                transforms.Resize((image_size, image_size)),
                transforms.ToTensor(),
                transforms.Normalize(expects.mean, expects.std),
            ]
        )
        self.train_images = ImageFolder(images / "train", transform)
        self.validation_images = ImageFolder(images / "validation", transform)

    def train(self, plan: FineTunePlan, settings: TrainingSettings, seed: int) -> list[float]:
        """Train as a plan says; the validation score after each epoch, balanced, in [0, 1]."""
        torch.manual_seed(seed)
        backbone = self._build(seed)
        network = backbone.network.to(self.device)
        train_batches, validation_batches = self._loaders(settings.batch_size)
        optimizer = torch.optim.Adam(_param_groups(backbone, plan, settings.base_lr))
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=settings.epochs * len(train_batches)
        )
        accuracies: list[float] = []
        best, best_epoch = -math.inf, 0
        for epoch in range(settings.epochs):
            _train_epoch(network, train_batches, optimizer, scheduler, self.device)
            accuracies.append(_validate(network, validation_batches, self.device))
            if accuracies[-1] > best:
                best, best_epoch = accuracies[-1], epoch
                torch.save(network.state_dict(), self.checkpoint)
            elif epoch - best_epoch >= settings.patience:
                break
        network.load_state_dict(torch.load(self.checkpoint, weights_only=True))
        return accuracies

    def _build(self, seed: int) -> Backbone:
        classes = len(self.train_images.classes)
        backbone = build_backbone(self.backbone, self.weights, classes)
        # It comes in channels_last. Undoing that takes 2 to 8 ms, in all a run's seconds.
        backbone.network.to(memory_format=torch.contiguous_format)
        backbone.reset_head(seed)
        return backbone

    def _loaders(self, size: int) -> tuple[Batches, Batches]:
        # BatchNorm cannot train on a lone last image.
        lone = len(self.train_images) % size == 1
        load: partial[Batches] = partial(DataLoader, batch_size=size)
        if self.device.type == "cuda":
            workers = min(LOADERS, cpu_count())
            load = partial(load, num_workers=workers, persistent_workers=True, pin_memory=True)
        train = load(self.train_images, shuffle=True, drop_last=lone)
        return train, load(self.validation_images)


def write_image_files(prepared: PreparedImages, folder: Path) -> None:
    """Write the training and validation images as PNG files, in one folder for each class.

    They have the prepared size, so that decoding costs as little as it can, and PNG loses nothing:
    both evaluators see the same pixels. Photographs would cost the naive evaluator many times more.
    """
    for split in ("train", "validation"):
        for index in prepared.indices(split):
            file = folder / split / prepared.classes[prepared.labels[index]] / f"{index:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(prepared.images[index]).save(file)


def _param_groups(
    backbone: Backbone, plan: FineTunePlan, base_lr: float
) -> list[dict[str, list[nn.Parameter] | float]]:
    groups: list[dict[str, list[nn.Parameter] | float]] = []
    for block, multiplier in plan.items():
        parameters = list(backbone.parameters_of(block))
        if multiplier is None:
            for parameter in parameters:
                parameter.requires_grad = False
        else:
            groups.append({"params": parameters, "lr": base_lr * multiplier})
    return groups


def _train_epoch(
    network: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> None:
    network.train()
    for images, labels in batches:
        optimizer.zero_grad()
        loss = cross_entropy(
            network(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()


def _validate(network: nn.Module, batches: Batches, device: torch.device) -> float:
    network.eval()
    predicted, expected = [], []
    with torch.no_grad():
        for images, labels in batches:
            logits = network(images.to(device, non_blocking=True))
            predicted.append(logits.argmax(dim=1).cpu())
            expected.append(labels)
    return float(balanced_accuracy_score(torch.cat(expected), torch.cat(predicted)))
