"""One fine-tuning run: Adam, cross-entropy, cosine schedule, early stopping on validation score.

The paper's recipe (section 2 of the method). Everything random in a run (head initialisation, order
of the images, dropout) comes from its seed and fold alone, so plans are compared on common random
numbers, and a run gives the same bits whatever ran before it and in whichever process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotune.finetuning.augmentation import augmenter
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.choices import (
    AUGMENTATIONS,
    CLASS_WEIGHTS,
    METRICS,
    Augmentation,
    ClassWeights,
    Metric,
)
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import FeatureCache, cut_of, network_input
from biotune.finetuning.freezing import (
    apply_plan,
    has_zero_gradient,
    prove_frozen,
    set_training_mode,
    trained_parameters,
)
from biotune.finetuning.learning_curve import LearningCurve, stopping_epoch
from biotune.finetuning.losses import class_weights
from biotune.finetuning.metrics import validation_scores
from biotune.finetuning.progress import Progress, ProgressFile
from biotune.plan import FineTunePlan

INFERENCE_BATCH = 64
"""Images per forward pass without gradients. Fixed, because other chunk sizes give other bits."""


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train.

    Attributes:
        epochs: at most this many passes over the training images, at least 1.
        patience: stop after this many epochs without a better validation score, at least 1.
        batch_size: images a step, at least 2 (BatchNorm needs two).
        base_lr: Adam's learning rate at multiplier 1, positive.
        metric: what validation is scored by; see :data:`~biotune.finetuning.choices.METRICS`.
        class_weights: see :func:`~biotune.finetuning.losses.class_weights`.
        label_smoothing: share of the target that goes to all classes alike, in [0, 1).
        augment: how training images are changed at random; see
            :mod:`biotune.finetuning.augmentation`. Features of frozen blocks are then computed anew
            for each training image.

    Raises:
        ValueError: for anything else.
    """

    epochs: int
    patience: int
    batch_size: int
    base_lr: float
    metric: Metric = "balanced_accuracy"
    class_weights: ClassWeights = "none"
    label_smoothing: float = 0.0
    augment: Augmentation = "none"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("patience", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.base_lr > 0:
            raise ValueError(f"base_lr must be positive, got {self.base_lr}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name, choices in (
            ("metric", METRICS),
            ("class_weights", CLASS_WEIGHTS),
            ("augment", AUGMENTATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class ImageSubset:
    """Some of the prepared images, by index, without copying them.

    Attributes:
        images: uint8 [N, S, S, 3], typically memory-mapped.
        labels: int64 [N], class indices.
        indices: int64 [n], which of the N belong to the subset.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def targets(self, positions: NDArray[np.int64], device: str) -> Tensor:
        """Class indices, int64 [b], on the device."""
        targets = torch.from_numpy(self.labels[self.indices[positions]])
        if torch.device(device).type == "cuda":
            return targets.pin_memory().to(device, non_blocking=True)
        return targets


@dataclass(frozen=True)
class FitResult:
    """What is left of a run.

    Attributes:
        curve: epoch by epoch.
        best_state: the network's tensors at its best epoch; None unless asked for.
        out_of_memory: what was said each time that memory ran out; at most twice.
    """

    curve: LearningCurve
    best_state: dict[str, Tensor] | None
    out_of_memory: tuple[str, ...] = ()


def fit(
    backbone: Backbone,
    plan: FineTunePlan,
    train: ImageSubset,
    validation: ImageSubset,
    settings: TrainingSettings,
    *,
    seed: int,
    fold: int = 0,
    must_reach: Sequence[float] = (),
    compute: Compute | None = None,
    cache: FeatureCache | None = None,
    keep_best: bool = False,
    on_epoch: Callable[[], None] | None = None,
    progress: ProgressFile | None = None,
) -> FitResult:
    """Fine-tune a network, in place, as a plan says.

    Args:
        backbone: with its pretrained weights, on ``compute``'s device; its head is initialised
            here.
        plan: a plan of this backbone's blocks that trains at least one.
        train: at least two images.
        validation: at least one image of every class.
        settings: see :class:`TrainingSettings`.
        seed: of head, order and dropout, with the fold.
        fold: which fold the images are.
        must_reach: stop as hopeless after epoch e if the best validation score so far is below
            ``must_reach[e]``; see :func:`~biotune.finetuning.learning_curve.stopping_epoch`.
        compute: default CPU, fp32.
        cache: of this network's features on these images; without one, a frozen prefix is computed
            anew in every step, to the same bits.
        keep_best: return a copy of the network's tensors at the best epoch.
        on_epoch: called after every epoch.
        progress: written after every epoch. A run that was killed goes on after the last epoch
            that is there, to the same bits.

    Raises:
        ValueError: if the plan trains nothing or names other blocks, or for fewer than two
            training images.
        FreezeProofError: if a frozen block moved or a trained one did not.
        OSError: if the progress cannot be written.
    """
    if not plan.trained_blocks:
        raise ValueError(f"the plan trains no block, there is nothing to fit: {plan}")
    if len(train) < 2:
        raise ValueError(f"training needs at least 2 images, got {len(train)}")
    started = time.perf_counter()
    compute = compute or Compute()
    head_seed, order_seed, dropout_seed, augment_seed = _streams(seed, fold)
    backbone.reset_head(head_seed)
    start = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    run = _Run(backbone, plan, settings, compute, cache, train, must_reach, augment_seed)
    order = np.random.default_rng(order_seed)
    best_state: dict[str, Tensor] | None = None
    with torch.random.fork_rng(devices=_cuda_devices(compute)):
        torch.manual_seed(dropout_seed)
        saved = progress.read() if progress is not None else None
        if saved is not None:
            best_state = run.go_on(saved, order)
            started -= saved.notes["seconds"]
        while not run.over:
            improved = run.epoch(validation, order)
            if improved and keep_best:
                best_state = {n: t.clone() for n, t in backbone.network.state_dict().items()}
            if progress is not None:
                progress.write(run.progress(best_state, order, time.perf_counter() - started))
            if on_epoch is not None:
                on_epoch()
    prove_frozen(backbone, plan, start, run.without_signal)
    return FitResult(run.curve(time.perf_counter() - started), best_state)


def predict_probabilities(
    backbone: Backbone,
    subset: ImageSubset,
    compute: Compute | None = None,
    *,
    cache: FeatureCache | None = None,
    cut: int = 0,
) -> NDArray[np.float32]:
    """Class probabilities of every image, float32 [n, classes], in evaluation mode.

    Args:
        backbone: on ``compute``'s device.
        subset: the images.
        compute: default CPU, fp32.
        cache: where the features of the layers before ``cut`` come from.
        cut: see :func:`~biotune.finetuning.feature_cache.cut_of`.
    """
    compute = compute or Compute()
    cache = cache or FeatureCache(backbone, subset.images, compute)
    backbone.network.eval()
    chunks = []
    with torch.no_grad():
        for positions in _chunks(np.arange(len(subset)), INFERENCE_BATCH):
            features = cache.features(subset.indices[positions], cut)
            with compute.autocast():
                logits = backbone.run_layers(cut, len(backbone.layers), features)
            chunks.append(logits.float().softmax(dim=1).cpu().numpy())
    return np.concatenate(chunks)


class _Run:
    """A run's optimizer, schedule and curve while it goes on."""

    def __init__(
        self,
        backbone: Backbone,
        plan: FineTunePlan,
        settings: TrainingSettings,
        compute: Compute,
        cache: FeatureCache | None,
        train: ImageSubset,
        must_reach: Sequence[float],
        augment_seed: int,
    ) -> None:
        self.backbone, self.plan, self.settings, self.compute = backbone, plan, settings, compute
        self.train = train
        self.cache = cache
        self.prefix = cache or FeatureCache(backbone, train.images, compute)
        self.must_reach = must_reach
        groups = apply_plan(backbone, plan, settings.base_lr)
        self.cut = cut_of(backbone, plan)
        self.optimizer = torch.optim.Adam(groups, fused=True)
        batches = _training_batches(np.arange(len(train)), settings.batch_size)
        steps = settings.epochs * len(batches)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=steps)
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.briers: list[float] = []
        self.diverged = False
        self.without_signal = set(plan.trained_blocks)
        self.augment = augmenter(settings.augment, augment_seed)
        self.loss = partial(
            backbone.loss,
            weight=_class_weights(settings, train, backbone.classes, compute),
            label_smoothing=settings.label_smoothing,
        )

    @property
    def over(self) -> bool:
        """Whether the run has come to its own end, or is hopeless."""
        return self.complete or stopping_epoch(self.scores, self.must_reach) is not None

    @property
    def complete(self) -> bool:
        """Diverged, all epochs done, or none of the last ``patience`` better than those before."""
        done = len(self.scores)
        if self.diverged or done >= self.settings.epochs:
            return True
        best = self.scores.index(max(self.scores)) if done else 0
        return done - 1 - best >= self.settings.patience

    def epoch(self, validation: ImageSubset, order: np.random.Generator) -> bool:
        """Train on every image once, then validate; whether this is the best epoch so far."""
        loss = self._train(order)
        probabilities = predict_probabilities(
            self.backbone, validation, self.compute, cache=self.cache, cut=self.cut
        )
        if not (math.isfinite(loss) and np.isfinite(probabilities).all()):
            self.diverged = True
            return False
        labels = validation.labels[validation.indices]
        score, brier = validation_scores(probabilities, labels, self.settings.metric)
        earlier = list(zip(self.scores, self.briers, strict=True))
        self.losses.append(loss)
        self.scores.append(score)
        self.briers.append(brier)
        return all((-score, brier) < (-s, b) for s, b in earlier)

    def _train(self, order: np.random.Generator) -> float:
        """One pass over the images in random order; the mean loss of its batches."""
        set_training_mode(self.backbone, self.plan)
        losses = []
        shuffled = order.permutation(len(self.train))
        for positions in _training_batches(shuffled, self.settings.batch_size):
            features = self._features(positions)
            with self.compute.autocast():
                logits = self.backbone.run_layers(self.cut, len(self.backbone.layers), features)
                loss = self.loss(logits, self.train.targets(positions, self.compute.device))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.without_signal = {
                block for block in self.without_signal if has_zero_gradient(self.backbone, block)
            }
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def _features(self, positions: NDArray[np.int64]) -> Tensor:
        """What the layers before the cut make of training images, changed at random or as kept."""
        indices = self.train.indices[positions]
        if self.augment is None:
            return self.prefix.features(indices, self.cut)
        pixels = network_input(
            self.augment(self.train.images[indices]), self.backbone, self.compute
        )
        with torch.no_grad(), self.compute.autocast():
            return self.backbone.run_layers(0, self.cut, pixels)

    def progress(
        self, best: Mapping[str, Tensor] | None, order: np.random.Generator, seconds: float
    ) -> Progress:
        """All that the epochs to come depend on."""
        state = self.optimizer.state_dict()
        tensors = {
            **{f"network.{n}": t for n, t in self.backbone.network.state_dict().items()},
            **{f"best.{n}": t for n, t in (best or {}).items()},
            **{
                f"optimizer.{index}.{name}": value
                for index, values in state["state"].items()
                for name, value in values.items()
            },
            "random.cpu": torch.get_rng_state(),
        }
        for device in _cuda_devices(self.compute):
            tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        if self.augment is not None:
            tensors["random.augment"] = self.augment.state
        notes = {
            "losses": self.losses,
            "scores": self.scores,
            "briers": self.briers,
            "diverged": self.diverged,
            "without_signal": sorted(self.without_signal),
            "param_groups": state["param_groups"],
            "schedule": self.schedule.state_dict(),
            "order": order.bit_generator.state,
            "seconds": seconds,
        }
        return Progress(tensors, notes)

    def go_on(self, saved: Progress, order: np.random.Generator) -> dict[str, Tensor] | None:
        """Take up what :meth:`progress` gave; the network's tensors at the best epoch."""
        notes = saved.notes
        self.losses, self.scores, self.briers = notes["losses"], notes["scores"], notes["briers"]
        self.diverged = notes["diverged"]
        self.without_signal = set(notes["without_signal"])
        self.backbone.network.load_state_dict(_below("network", saved.tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer", saved.tensors).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        groups = notes["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:  # the fused kernel goes by memory order
                    values[name] = torch.empty_like(parameter).copy_(value)
        self.schedule.load_state_dict(notes["schedule"])
        order.bit_generator.state = notes["order"]
        torch.set_rng_state(saved.tensors["random.cpu"])
        for device in _cuda_devices(self.compute):
            torch.cuda.set_rng_state(saved.tensors["random.cuda"], device)
        if self.augment is not None:
            self.augment.state = saved.tensors["random.augment"]
        return _below("best", saved.tensors) or None

    def curve(self, seconds: float) -> LearningCurve:
        return LearningCurve(
            train_loss=tuple(self.losses),
            validation_score=tuple(self.scores),
            validation_brier=tuple(self.briers),
            trained_parameters=trained_parameters(self.backbone, self.plan),
            outcome="diverged" if self.diverged else "finished" if self.complete else "stopped",
            seconds=seconds,
        )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")
    }


def _class_weights(
    settings: TrainingSettings, train: ImageSubset, classes: int, compute: Compute
) -> Tensor | None:
    weights = class_weights(settings.class_weights, train.labels[train.indices], classes)
    return None if weights is None else weights.to(compute.device)


def _streams(seed: int, fold: int) -> tuple[int, int, int, int]:
    """Independent seeds for head, order, dropout and augmentation."""
    head, order, dropout, augment = np.random.SeedSequence([seed, fold]).generate_state(4)
    return int(head), int(order), int(dropout), int(augment)


def _training_batches(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Batches of at least two images: BatchNorm cannot train on one, so a last lone one is left."""
    return [batch for batch in _chunks(order, size) if len(batch) > 1]


def _chunks(positions: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, len(positions), size):
        yield positions[begin : begin + size]


def _cuda_devices(compute: Compute) -> list[str]:
    return [compute.device] if compute.device_type == "cuda" else []
