"""A network that has learned digits, and its ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from biotune.data import PreparedImages
from biotune.deployment.export import export_onnx
from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.checkpoints import ModelCard
from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings
from biotune.images import DigitsSource, prepare_images
from biotune.plan import FineTunePlan
from tests.threads import one_thread

CLASSES = ("zero", "été", "冬", 'a "quoted" one', "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Exported:
    """A network that has learned digits, its card, its images, and its ONNX file."""

    path: Path
    backbone: Backbone
    card: ModelCard
    prepared: PreparedImages


def export_digits(folder: Path) -> Exported:
    """Prepare, train and export, in an empty folder; it takes seconds.

    It gets nine of ten digits right: one that has hardly learned answers otherwise in fewer bits.
    """
    prepared = prepare_images(
        DigitsSource(),
        folder / "prepared",
        image_size=48,
        train_images=200,
        validation_images=40,
        seed=0,
    )
    trainer = Trainer(folder / "prepared", "efficientnet_lite0", "imagenet", Compute())
    trained = ("blocks.4", "blocks.5", "classifier")
    plan = FineTunePlan({b: 5.0 if b in trained else None for b in trainer.backbone.blocks})
    with one_thread():  # the same network whichever test is first to ask for it
        trainer.train(TrainingTask(plan, 0, TrainingSettings(6, 6, 10, 0.001)))
    # As the finetune stage leaves it: without the layers that it was trained by on a CPU.
    backbone = build_backbone("efficientnet_lite0", "imagenet", len(prepared.classes))
    backbone.network.load_state_dict(trainer.backbone.network.state_dict())
    card = ModelCard(
        backbone=backbone.name,
        classes=CLASSES,
        plan=plan,
        name="g0-1",
        image_size=48,
        mean=backbone.mean,
        std=backbone.std,
        validation_score=0.5,
        precision="fp32",
    )
    (folder / "deploy").mkdir()
    path = folder / "deploy" / "model.onnx"
    export_onnx(backbone, card, path)
    return Exported(path, backbone, card, prepared)
