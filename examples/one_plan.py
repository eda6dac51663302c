"""Train one plan: what it freezes is proved to be as pretrained, bit for bit, when it is done."""

from pathlib import Path
from tempfile import TemporaryDirectory

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings
from biotune.images import open_source, prepare_images
from biotune.plan import FineTunePlan


def main(folder: Path, network: str = "efficientnet_lite0", weights: str = "imagenet") -> float:
    """Prepare digits in a folder, and train on 300; the best validation score, in [0, 1]."""
    digits = open_source("digits", folder)
    prepare_images(digits, folder, image_size=32, train_images=300, validation_images=300, seed=0)
    trainer = Trainer(folder, network, weights, Compute())
    *others, last, head = trainer.backbone.blocks
    plan = FineTunePlan({**dict.fromkeys(others), last: 1.0, head: 5.0})
    settings = TrainingSettings(epochs=5, patience=5, batch_size=10, base_lr=0.002)
    curve = trainer.train(TrainingTask(plan, seed=0, settings=settings)).curve
    print(f"{max(curve.validation_score):.1%}, {curve.trained_parameters:,} parameters: {plan}")
    return max(curve.validation_score)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder, "prepared"))
