"""The proof on the original test images: on all of them, at every batch size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from biotune.data import PreparedImages, UnusableImageError
from biotune.deployment.predictor import Predictor
from biotune.finetuning.training import ImageSubset, predict_probabilities
from biotune.images import DigitsSource
from pipeline.proof.agreement import Answers, ask
from pipeline.proof.export_formats import accuracy_on_prepared, calibration_batches
from pipeline.proof.originals import MissingOriginalError, Originals, thumbnail
from tests.exported import Exported


@dataclass
class Answering:
    """Stands in for a model: notes what it is asked, and answers by brightness."""

    batches: list[int] = field(default_factory=list)

    def probabilities(self, images: list[np.ndarray]) -> np.ndarray:
        self.batches.append(len(images))
        bright = np.array([image.mean() / 255 for image in images], np.float32)
        others = [np.zeros_like(bright)] * 8
        return np.stack([bright, 1 - bright, *others], axis=1)


@pytest.fixture(scope="module")
def few(exported: Exported) -> PreparedImages:
    """The same images, 37 of them to test on."""
    prepared = exported.prepared
    splits = prepared.splits.copy()
    splits[prepared.indices("test")[37:]] = "train"
    return replace(prepared, splits=splits)


@dataclass
class Counting:
    """A source that notes how often each image is decoded."""

    source: DigitsSource = field(default_factory=DigitsSource)
    loaded: Counter[int] = field(default_factory=Counter)

    def __getattr__(self, name: str) -> object:
        return getattr(self.source, name)

    def load(self, index: int) -> np.ndarray:
        self.loaded[index] += 1
        return self.source.load(index)


def all_answers(
    exported: Exported, images: PreparedImages, models: object, source: object, workers: int = 2
) -> Answers:
    """What models say of a source's test images."""
    originals = Originals(source, images)  # type: ignore[arg-type]
    return ask(models, exported.backbone, originals, images, workers, lambda _: None)  # type: ignore[arg-type]


def test_every_test_image_is_asked_about_in_batches_of_1_2_and_32(
    exported: Exported, few: PreparedImages
) -> None:
    originals = Originals(DigitsSource(), few)
    models = {name: Answering() for name in ("fp32", "int8", "fp16")}
    done: list[int] = []
    answers = ask(models, exported.backbone, originals, few, 1, done.append)  # type: ignore[arg-type]
    assert len(originals) == sum(done) == 37
    expected = np.array([originals.load(i).mean() / 255 for i in range(37)], np.float32)
    for name in ("fp32", "int8"):
        assert sorted(answers.probabilities[name]) == [1, 2, 32]
        for rows in answers.probabilities[name].values():
            assert np.array_equal(rows[:, 0], expected), "in the order of the images"
        assert set(models[name].batches) == {1, 2, 32, 5}  # 37 = 32 + 5
        sizes = 1 + 3  # as they came, and at three others
        assert models[name].batches.count(1) == sizes * (37 + 1)  # and the last of five by twos
        assert models[name].batches.count(32) == sizes
    assert sorted(answers.probabilities["fp16"]) == [32]


def test_each_original_is_decoded_once_whatever_is_asked_about_it(
    exported: Exported, few: PreparedImages
) -> None:
    source = Counting()
    answers = all_answers(exported, few, {"fp32": Answering(), "int8": Answering()}, source)
    assert len(answers.samples) == 10
    paths = {few.paths[row] for row in few.indices("test")}
    places = {place for place, path in enumerate(source.source.paths) if path in paths}
    assert source.loaded == Counter(dict.fromkeys(places, 1))


def test_the_answers_are_the_same_bit_by_bit_with_any_number_of_workers(
    exported: Exported, few: PreparedImages
) -> None:
    models = {"fp32": Predictor(exported.path, device="cpu", threads=1)}
    first, second = (all_answers(exported, few, models, DigitsSource(), n) for n in (1, 3))
    assert first.digests == second.digests
    assert first.at_sizes == second.at_sizes
    for size, rows in first.probabilities["fp32"].items():
        assert np.array_equal(rows, second.probabilities["fp32"][size])


def test_the_digest_is_of_names_labels_and_pixels_in_any_order(
    exported: Exported, few: PreparedImages
) -> None:
    def answers(images: PreparedImages, source: object) -> Answers:
        return all_answers(exported, images, {"fp32": Answering()}, source)

    class Brighter(DigitsSource):
        def load(self, index: int) -> np.ndarray:
            return np.maximum(super().load(index), 1)

    first = answers(few, DigitsSource())
    assert first.test == answers(few, DigitsSource()).test
    assert first.test != answers(few, Brighter()).test
    labels = few.labels.copy()
    labels[few.indices("test")[0]] += 1
    assert first.test != answers(replace(few, labels=labels % 10), DigitsSource()).test
    backwards = Answers({}, first.digests[::-1], {}, [])
    assert first.test == backwards.test
    right = [index % 3 == 0 for index in range(37)]
    assert first.in_order(right) == backwards.in_order(right[::-1])
    assert first.in_order(right).count("1") == 13


def test_the_exported_model_agrees_with_torch_at_other_sizes_too(
    exported: Exported, few: PreparedImages
) -> None:
    models = {"fp32": Predictor(exported.path, device="cpu", threads=1)}
    at_sizes = all_answers(exported, few, models, DigitsSource()).at_sizes["fp32"]
    assert list(at_sizes) == ["prepared", "scaled_0.5", "scaled_2"]
    for by_batch in at_sizes.values():
        assert list(by_batch) == ["batch_1", "batch_2", "batch_32"]
        for agreement in by_batch.values():
            assert agreement.label_agreement >= 0.97
            assert 0 < agreement.largest_difference < 1e-2


def test_accuracy_on_prepared_images_is_that_of_training(exported: Exported) -> None:
    prepared = exported.prepared
    rows = prepared.indices("validation")
    by_torch = predict_probabilities(
        exported.backbone, ImageSubset(prepared.images, prepared.labels, rows)
    )
    right = float((by_torch.argmax(axis=1) == prepared.labels[rows]).mean())
    predictor = Predictor(exported.path, device="cpu")
    assert accuracy_on_prepared(predictor, prepared, "validation") == right > 0.1


def test_a_test_image_that_has_gone_is_named(few: PreparedImages) -> None:
    class Fewer(DigitsSource):
        def __init__(self, gone: str) -> None:
            super().__init__()
            self.paths = [path for path in self.paths if path != gone]

    class Damaged(DigitsSource):
        def load(self, index: int) -> np.ndarray:
            raise UnusableImageError("the file is empty")

    name = few.paths[few.indices("test")[3]]
    with pytest.raises(MissingOriginalError, match=f"{name}.*put it back"):
        Originals(Fewer(name), few)
    with pytest.raises(
        MissingOriginalError, match=r"digits/\d+ cannot be read any more \(the file"
    ):
        Originals(Damaged(), few).load(0)


def test_samples_are_of_as_many_classes_as_may_be_and_none_is_large(
    exported: Exported, few: PreparedImages
) -> None:
    originals = Originals(DigitsSource(), few)
    samples = all_answers(exported, few, {"fp32": Answering()}, DigitsSource()).samples
    assert len(samples) == 10
    first = [originals.load(int(np.flatnonzero(originals.labels == c)[0])) for c in range(10)]
    assert all(any(np.array_equal(image, sample) for sample in samples) for image in first)
    large = np.zeros((300, 2000, 3), np.uint8)
    assert thumbnail(large, 512).shape == (77, 512, 3)
    assert thumbnail(samples[0], 512) is samples[0]


def test_calibration_takes_whole_batches_evenly_from_the_training_images(
    few: PreparedImages,
) -> None:
    batches = list(calibration_batches(few, most=50, size=16))
    assert [batch.shape for batch in batches] == [(16, 48, 48, 3)] * 3
    rows = few.indices("train")
    assert np.array_equal(batches[0][0], few.images[rows[0]])
    assert not np.array_equal(batches[0], few.images[rows[:16]]), "from all of them"
    (single,) = calibration_batches(few, most=1, size=16)
    assert single.shape == (1, 48, 48, 3)
