"""One fine-tuning run: its rates, its end, its best epoch, and the same bits every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from biotune.finetuning import training
from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import FeatureCache, cut_of, network_input
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.freezing import FreezeProofError
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.metrics import validation_scores
from biotune.finetuning.training import (
    FitResult,
    ImageSubset,
    TrainingSettings,
    fit,
    predict_probabilities,
)
from biotune.plan import FineTunePlan
from tests.biotune.finetuning import toy

VALIDATION = toy.subset(15, start=1)


def run(
    plan: FineTunePlan, backbone: Backbone | None = None, seed: int = 0, **options
) -> FitResult:
    """Train the toy network; ``settings``, ``train`` and so on are options."""
    arguments = {"settings": toy.settings(), "train": toy.subset()} | options
    train, settings = arguments.pop("train"), arguments.pop("settings")
    network = backbone or toy.backbone()
    return fit(network, plan, train, VALIDATION, settings, seed=seed, **arguments)


def plan_of(trainer: Trainer, multipliers: dict[str, float]) -> FineTunePlan:
    """Trains the named blocks of EfficientNet-Lite0; the others are frozen."""
    unknown = set(multipliers) - set(trainer.backbone.blocks)
    assert not unknown, unknown
    return FineTunePlan({block: multipliers.get(block) for block in trainer.backbone.blocks})


def apart_from_time(curve: LearningCurve) -> LearningCurve:
    return replace(curve, seconds=0.0)


def script(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let validation say these accuracies, one an epoch."""
    said: Iterator[float] = iter(accuracies)
    monkeypatch.setattr(training, "validation_scores", lambda *_: (next(said), 0.5))


@pytest.fixture
def optimizers(monkeypatch) -> list[torch.optim.Adam]:
    """Every Adam that is made; each notes its groups' rates at every step in ``rates``."""
    made: list[torch.optim.Adam] = []

    class NotingAdam(torch.optim.Adam):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            self.rates: list[list[float]] = []
            made.append(self)

        def step(self, closure=None):
            self.rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", NotingAdam)
    return made


@pytest.fixture
def trained_on(monkeypatch) -> list[list[int]]:
    """The images of every training step, by their place in the subset."""
    seen: list[list[int]] = []
    targets = ImageSubset.targets

    def note(self, positions, device):
        seen.append(positions.tolist())
        return targets(self, positions, device)

    monkeypatch.setattr(ImageSubset, "targets", note)
    return seen


# --- the multipliers


def test_the_multipliers_reach_the_optimizer(trainer):
    """A block trained at 10 moves about a hundred times as far as at 0.1; the others stay level."""
    pretrained = build_backbone("efficientnet_lite0", "imagenet", 10).network.state_dict()
    settings = TrainingSettings(epochs=1, patience=1, batch_size=20, base_lr=1e-4)

    def distances(multiplier: float) -> dict[str, float]:
        """How far each block moves: the Euclidean distance of its parameters from their start."""
        plan = plan_of(trainer, {"blocks.3": multiplier, "conv_head": 1.0})
        trainer.train(TrainingTask(plan, 0, settings))
        squares = dict.fromkeys(trainer.backbone.blocks, 0.0)
        for block in squares:
            for name in trainer.backbone.tensor_names(block):
                if name in parameters and block != trainer.backbone.head:
                    moved = trainer.backbone.network.state_dict()[name] - pretrained[name]
                    squares[block] += float(moved.double().square().sum())
        return {block: math.sqrt(square) for block, square in squares.items()}

    parameters = {name for name, _ in trainer.backbone.network.named_parameters()}
    slow, fast = distances(0.1), distances(10.0)
    assert slow["blocks.3"] > 0
    assert 50 < fast["blocks.3"] / slow["blocks.3"] < 200
    assert 0.8 < fast["conv_head"] / slow["conv_head"] < 1.25
    assert fast["blocks.2"] == slow["blocks.2"] == 0.0


def test_every_group_starts_at_its_rate_and_falls_along_a_cosine_to_zero(optimizers):
    result = run(toy.plan(stem=0.1, head=10.0), settings=toy.settings(epochs=4, patience=4))
    assert len(result.curve.train_loss) == 4
    (optimizer,) = optimizers
    steps = 4 * 3
    expected = [
        [rate * (1 + math.cos(math.pi * step / steps)) / 2 for rate in (0.001, 0.1)]
        for step in range(steps)
    ]
    assert np.allclose(optimizer.rates, expected, rtol=1e-6, atol=0)
    assert optimizer.rates[0] == pytest.approx([0.001, 0.1])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0], abs=1e-12)


def test_the_optimizer_is_adam_without_weight_decay(optimizers):
    run(toy.plan(head=1.0), settings=toy.settings(epochs=1))
    (optimizer,) = optimizers
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


# --- the end, and the best epoch


def test_a_run_stops_after_patience_epochs_without_a_better_accuracy(monkeypatch):
    script(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.9])
    result = run(toy.plan(head=1.0), settings=toy.settings(epochs=5, patience=2))
    assert result.curve.validation_score == (0.1, 0.5, 0.4, 0.5)
    assert result.curve.best_epoch == 1
    assert result.curve.outcome == "finished"


def test_a_run_goes_on_while_it_gets_better_and_ends_after_its_epochs(monkeypatch):
    script(monkeypatch, [0.1, 0.2, 0.1, 0.3, 0.4, 1.0])
    result = run(toy.plan(head=1.0), settings=toy.settings(epochs=5, patience=2))
    assert result.curve.validation_score == (0.1, 0.2, 0.1, 0.3, 0.4)


@pytest.mark.parametrize(
    ("accuracies", "briers", "best"),
    [
        ((0.5, 0.7, 0.6), (0.1, 0.9, 0.2), 1),
        ((0.7, 0.7, 0.6), (0.4, 0.3, 0.1), 1),
        ((0.7, 0.7), (0.4, 0.4), 0),
    ],
    ids=["accuracy", "then Brier score", "then the first"],
)
def test_the_best_epoch_has_the_best_accuracy_then_the_best_brier_score(accuracies, briers, best):
    losses = (1.0,) * len(briers)
    assert LearningCurve(losses, accuracies, briers, 1, "finished", 0.0).best_epoch == best


@pytest.mark.parametrize("accuracies", [[0.5, 0.4, 0.3], [0.1, 0.6, 0.2], [0.1, 0.2, 0.3]])
def test_the_kept_tensors_are_those_at_the_best_epoch(monkeypatch, accuracies):
    script(monkeypatch, accuracies)
    backbone = toy.backbone()
    after: list[dict[str, torch.Tensor]] = []
    result = run(
        toy.plan(stem=1.0, head=1.0),
        backbone,
        keep_best=True,
        on_epoch=lambda: after.append(toy.copy_of(backbone)),
    )
    assert len(after) == 3
    assert not toy.equal(after[0], after[1])
    assert toy.equal(result.best_state, after[result.curve.best_epoch])


def test_no_tensors_are_kept_unless_asked_for():
    assert run(toy.plan(head=1.0)).best_state is None


def test_predicting_with_the_kept_tensors_gives_the_recorded_scores(trainer, monkeypatch):
    # The later, the worse: so the first epoch is kept, and not what the network holds at the end.
    epochs: list[tuple[float, float]] = []

    def ever_worse(probabilities, labels, metric):
        epochs.append(validation_scores(probabilities, labels, metric))
        return (-len(epochs), 0.0)

    monkeypatch.setattr(training, "validation_scores", ever_worse)
    plan = plan_of(trainer, {"blocks.5": 5.0, "classifier": 1.0})
    result = trainer.train(TrainingTask(plan, 0, TrainingSettings(3, 3, 16, 0.001)), keep_best=True)
    assert len(epochs) == 3
    assert result.curve.best_epoch == 0
    trainer.backbone.network.load_state_dict(result.best_state)
    validation = trainer.subset("validation")
    cut = cut_of(trainer.backbone, plan)
    probabilities = predict_probabilities(
        trainer.backbone, validation, cache=trainer.cache, cut=cut
    )
    labels = validation.labels[validation.indices]
    assert validation_scores(probabilities, labels) == epochs[0]
    assert epochs[0] != epochs[2]


# --- repetition


def test_a_run_gives_the_same_bits_whatever_ran_before(trainer):
    settings = TrainingSettings(epochs=2, patience=2, batch_size=16, base_lr=0.001)
    first = TrainingTask(
        plan_of(trainer, {"stem": 3.0, "blocks.4": 3.0, "classifier": 1.0}), 1, settings
    )
    other = TrainingTask(plan_of(trainer, {"blocks.2": 10.0}), 2, replace(settings, epochs=1))
    before = trainer.train(first, keep_best=True)
    trainer.train(other)
    torch.manual_seed(12345)
    again = trainer.train(first, keep_best=True)
    assert apart_from_time(again.curve) == apart_from_time(before.curve)
    assert toy.equal(again.best_state, before.best_state)


def test_dropout_is_drawn_from_the_runs_own_seed():
    curves = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        curves.append(apart_from_time(run(toy.plan(middle=1.0)).curve))
    assert curves[0] == curves[1]


def test_another_seed_or_fold_is_another_run():
    plan = toy.plan(stem=1.0, head=1.0)
    losses = {run(plan, seed=s, fold=f).curve.train_loss for s, f in [(0, 0), (1, 0), (0, 1)]}
    assert len(losses) == 3


def test_a_run_leaves_the_global_random_state_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(toy.plan(middle=1.0, head=1.0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_plans_are_compared_on_the_same_head_and_the_same_order_of_images(trained_on):
    heads, orders = [], []
    for plan in (toy.plan(stem=0.1), toy.plan(middle=10.0)):
        backbone = toy.backbone()
        run(plan, backbone, seed=7)
        # Frozen in both: the head is still as it started.
        heads.append([parameter.detach().clone() for parameter in backbone.parameters_of("head")])
        orders.append(list(trained_on))
        trained_on.clear()
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))
    assert orders[0] == orders[1]
    run(toy.plan(stem=0.1), seed=8)
    assert trained_on != orders[0]


def test_every_epoch_shows_every_image_once_in_a_new_order(trained_on):
    run(toy.plan(head=1.0))
    epochs = [sum(trained_on[begin : begin + 3], []) for begin in (0, 3, 6)]  # noqa: RUF017
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


@pytest.mark.parametrize(
    ("images", "steps"), [(24, [8, 8, 8]), (25, [8, 8, 8]), (26, [8, 8, 8, 2]), (5, [5])]
)
def test_a_last_image_alone_is_dropped(trained_on, images, steps):
    result = run(toy.plan(stem=1.0), train=toy.subset(images), settings=toy.settings(epochs=1))
    assert [len(step) for step in trained_on] == steps
    assert result.curve.outcome == "finished"


# --- runs that fail


def test_a_loss_that_is_no_number_is_an_outcome_and_no_exception():
    result = run(
        toy.plan(stem=1.0, middle=1.0), settings=toy.settings(base_lr=1e30), keep_best=True
    )
    assert result.curve.outcome == "diverged"
    assert result.curve.validation_score == ()
    assert result.best_state is None


def test_a_run_that_diverges_late_keeps_the_epochs_before(monkeypatch):
    real = training.predict_probabilities
    calls = []

    def nan_from_the_second_epoch(*args, **options):
        calls.append(None)
        return real(*args, **options) * (1 if len(calls) == 1 else np.nan)

    monkeypatch.setattr(training, "predict_probabilities", nan_from_the_second_epoch)
    curve = run(toy.plan(head=1.0)).curve
    assert curve.outcome == "diverged"
    assert len(curve.train_loss) == len(curve.validation_score) == 1


def detached(*, after: str) -> Backbone:
    """The toy network with a fault: no gradient reaches this block, or any before it."""
    whole = toy.backbone()
    place = whole.blocks["middle" if after == "stem" else "head"].first_layer
    return replace(whole, layers=(*whole.layers[:place], toy.Detach(), *whole.layers[place:]))


def test_a_trained_block_that_no_gradient_reaches_is_caught():
    plan = toy.plan(stem=1.0, middle=1.0, head=1.0)
    with pytest.raises(FreezeProofError, match=r"trained blocks that did not: \['stem'\]"):
        run(plan, detached(after="stem"))


def test_a_block_behind_dead_features_may_stay_where_it_is():
    backbone = toy.backbone()
    with torch.no_grad():
        for parameter in backbone.parameters_of("middle"):
            parameter.zero_()  # passes nothing on, forwards or backwards
    start = toy.copy_of(backbone)
    assert run(toy.plan(stem=1.0, head=1.0), backbone).curve.outcome == "finished"
    assert all(torch.equal(backbone.network.state_dict()[n], start[n]) for n in ["0.weight"])


def test_a_run_that_breaks_the_freezing_has_no_result(monkeypatch):
    monkeypatch.setattr(
        training, "set_training_mode", lambda backbone, plan: backbone.network.train()
    )
    with pytest.raises(FreezeProofError, match=r"frozen blocks that changed: \['middle"):
        run(toy.plan(stem=1.0, head=1.0))
    with pytest.raises(ValueError, match="before cut 7 must be in evaluation mode"):
        run(toy.plan(head=1.0))


def test_a_plan_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="trains no block, there is nothing to fit: stem=frozen"):
        run(toy.plan())


def test_a_plan_for_another_network_is_refused():
    with pytest.raises(ValueError, match="are not those of toy"):
        run(FineTunePlan({"conv1": 1.0, "fc": 1.0}))


def test_a_single_training_image_is_refused():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        run(toy.plan(head=1.0), train=toy.subset(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"base_lr": 0.0}, "base_lr must be positive, got 0.0"),
        ({"base_lr": math.nan}, "base_lr must be positive, got nan"),
    ],
)
def test_settings_that_cannot_train_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        toy.settings(**change)


# --- what the network sees


def test_images_are_normalised_and_channels_last_without_a_copy_in_another_order():
    backbone, images = toy.backbone(), toy.subset()
    batch = network_input(images.images[[9, 5]], backbone, Compute())
    assert batch.shape == (2, 3, 7, 7)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    pixels = images.images[[9, 5]].transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(c).reshape(1, 3, 1, 1) for c in (backbone.mean, backbone.std))
    assert np.allclose(batch.numpy(), (pixels - mean) / std, atol=1e-6)
    chosen = replace(images, indices=np.array([5, 2, 9]))
    assert chosen.targets(np.array([2, 0]), "cpu").tolist() == [9 % 3, 5 % 3]


def test_probabilities_come_in_the_subsets_order_and_do_not_depend_on_the_mode():
    backbone = toy.backbone()
    images = replace(toy.subset(150), indices=np.arange(149, -1, -1))  # several passes
    backbone.network.train()
    probabilities = predict_probabilities(backbone, images)
    assert probabilities.shape == (150, 3)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    last = predict_probabilities(backbone, replace(images, indices=np.array([149])))
    assert np.allclose(last[0], probabilities[0], atol=1e-6)
    assert not np.allclose(last[0], probabilities[-1], atol=1e-6)


def test_bf16_trains_too_and_is_really_another_precision():
    plan = toy.plan(stem=1.0, middle=1.0, head=1.0)
    backbone = toy.backbone()
    half = run(plan, backbone, compute=Compute("cpu", "bf16")).curve
    assert half.outcome == "finished"
    assert half.train_loss != run(plan).curve.train_loss
    assert half.train_loss == pytest.approx(run(plan).curve.train_loss, abs=0.1)
    assert {p.dtype for p in backbone.network.parameters()} == {torch.float32}
    assert predict_probabilities(backbone, VALIDATION, Compute("cpu", "bf16")).dtype == np.float32


# --- and it learns


def test_a_few_epochs_on_forty_digits_beat_chance_by_far(trainer):
    plan = plan_of(trainer, {"blocks.4": 5.0, "blocks.5": 5.0, "classifier": 3.0})
    curve = trainer.train(TrainingTask(plan, 0, TrainingSettings(6, 6, 10, 0.001))).curve
    assert curve.validation_score[curve.best_epoch] >= 0.45  # chance is 0.1
    assert curve.train_loss[-1] < curve.train_loss[0] / 2
    assert curve.validation_brier[curve.best_epoch] < 0.75  # not knowing is 0.9
    assert curve.trained_parameters == sum(
        p.numel() for b in plan.trained_blocks for p in trainer.backbone.parameters_of(b)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_plan_trains_on_cuda_in_bf16_and_the_freeze_proof_holds(digits):
    trainer = Trainer(digits, "efficientnet_lite0", "imagenet", Compute("cuda", "bf16"))
    start = toy.copy_of(trainer.backbone)
    plan = plan_of(trainer, {"blocks.4": 5.0, "blocks.5": 5.0, "classifier": 3.0})
    task = TrainingTask(plan, 0, TrainingSettings(6, 6, 10, 0.001))
    result = trainer.train(task, keep_best=True)  # ends with the freeze proof
    assert result.curve.outcome == "finished"
    assert result.curve.validation_score[result.curve.best_epoch] >= 0.45
    for block in plan.frozen_blocks:
        names = trainer.backbone.tensor_names(block)
        assert all(torch.equal(result.best_state[name], start[name]) for name in names)
    assert result.best_state["blocks.4.0.conv_pw.weight"].device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_proof_catches_a_drifting_batchnorm(digits, monkeypatch):
    everything_trains: Callable[..., None] = lambda backbone, plan: backbone.network.train()  # noqa: E731
    monkeypatch.setattr(training, "set_training_mode", everything_trains)
    trainer = Trainer(digits, "efficientnet_lite0", "imagenet", Compute("cuda", "bf16"))
    # A frozen prefix is not even run in training; what comes after the first trained block is.
    task = TrainingTask(plan_of(trainer, {"stem": 1.0}), 0, TrainingSettings(1, 1, 10, 0.001))
    with pytest.raises(FreezeProofError, match=r"blocks\.0 \(blocks.*running_mean\)"):
        trainer.train(task)


def test_a_hopeless_run_stops_and_is_a_prefix_of_the_whole_run(trainer: Trainer) -> None:
    plan = plan_of(trainer, {"blocks.5": 5.0})
    settings = TrainingSettings(epochs=3, patience=3, batch_size=16, base_lr=0.001)
    whole = trainer.train(TrainingTask(plan, 0, settings)).curve
    needed = (0.0, max(whole.validation_score[:2]) + 0.01)
    raced = trainer.train(TrainingTask(plan, 0, settings, must_reach=needed)).curve
    assert raced.outcome == "stopped"
    assert raced.validation_score == whole.validation_score[:2]
    assert apart_from_time(raced) == apart_from_time(whole.raced(needed))


@pytest.mark.parametrize("needed", [(), (0.0, 0.0), (0.3,), (0.0, 0.4, 0.9), (0.0, 0.0, 0.0, 0.9)])
def test_thresholds_that_are_met_or_come_after_the_end_change_nothing(
    monkeypatch: pytest.MonkeyPatch, needed: tuple[float, ...]
) -> None:
    script(monkeypatch, [0.3, 0.4, 0.5])
    curve = run(toy.plan(head=1.0), must_reach=needed).curve
    assert (curve.outcome, len(curve.validation_score)) == ("finished", 3)
    assert curve.raced(needed) == curve


# --- metric, class weights, smoothing and augmentation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "acuracy"}, "metric must be one of balanced_accuracy, accuracy, .*'acuracy'"),
        ({"class_weights": "inverse"}, "class_weights must be one of none, balanced"),
        ({"augment": "mixup"}, "augment must be one of none, flip"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_unknown_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy.settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"class_weights": "balanced"}, {"label_smoothing": 0.2}, {"augment": "flip"}],
)
def test_each_setting_changes_the_training_and_repeats_to_the_bit(changes):
    images = toy.subset(20)  # 7, 7 and 6 of each class
    plan = toy.plan(middle=1.0, head=1.0)
    plain = fit(toy.backbone(), plan, images, images, toy.settings(), seed=0)
    first, again = (
        fit(toy.backbone(), plan, images, images, toy.settings(**changes), seed=0) for _ in range(2)
    )
    assert first.curve.train_loss == again.curve.train_loss != plain.curve.train_loss


def test_augmented_training_images_are_never_kept_and_validation_images_are(monkeypatch):
    backbone, images = toy.backbone(), toy.subset(24)
    everything = replace(images, indices=np.arange(24))
    train, validation = (replace(images, indices=part) for part in np.split(np.arange(24), 2))
    cache = FeatureCache(backbone, everything.images, Compute(), 10_000_000)
    asked = []
    real = cache.features

    def features(indices, cut):
        asked.extend(indices.tolist())
        return real(indices, cut)

    monkeypatch.setattr(cache, "features", features)
    settings = toy.settings(augment="flip")
    fit(backbone, toy.plan(head=1.0), train, validation, settings, seed=0, cache=cache)
    assert set(asked) == set(range(12, 24))


def test_what_is_maximised_is_the_named_metric(monkeypatch):
    calls = []
    real = training.validation_scores

    def scores(probabilities, labels, metric):
        calls.append(metric)
        return real(probabilities, labels, metric)

    monkeypatch.setattr(training, "validation_scores", scores)
    images = toy.subset()
    settings = toy.settings(metric="f1_macro")
    fit(toy.backbone(), toy.plan(head=1.0), images, images, settings, seed=0)
    assert set(calls) == {"f1_macro"}


def test_classes_are_weighed_by_the_images_that_are_trained_on():
    everything = toy.subset(24)  # of each class as many
    part = np.flatnonzero((everything.labels > 0) | (np.arange(24) % 2 == 0))
    alone = ImageSubset(everything.images[part], everything.labels[part], np.arange(len(part)))
    settings = toy.settings(class_weights="balanced")
    inside, apart = (
        fit(toy.backbone(), toy.plan(head=1.0), images, VALIDATION, settings, seed=0)
        for images in (replace(everything, indices=part), alone)
    )
    assert inside.curve.train_loss == apart.curve.train_loss
