"""A deployed model asked about pixels and files: any sizes, any mess, and honest about itself."""

from __future__ import annotations

import io
import json
import threading

import numpy as np
import onnx
import pytest
from PIL import Image

from biotune.data.decoding import UnusableImageError
from biotune.deployment.inputs import find_images
from biotune.deployment.predictor import Predictor
from biotune.finetuning.training import ImageSubset, predict_probabilities
from biotune.images import DigitsSource


@pytest.fixture(scope="module")
def predictor(exported):
    return Predictor(exported.path, device="cpu", threads=1)


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def test_it_says_what_it_is(exported, predictor):
    assert predictor.classes == exported.card.classes
    assert predictor.image_size == 48
    assert predictor.provider == "CPUExecutionProvider"
    assert predictor.metadata["plan"] == dict(exported.card.plan)
    assert predictor.metadata["backbone"] == "efficientnet_lite0"
    assert predictor.background == "white"


def test_images_of_several_sizes_are_answered_in_their_order(exported, predictor):
    raw = [DigitsSource().load(index) for index in range(6)]
    scaled = [
        np.array(Image.fromarray(image).resize((24, 16 + 8 * (index % 2))))
        for index, image in enumerate(raw)
    ]
    mixed = [image for pair in zip(raw, scaled, strict=True) for image in pair]
    together = predictor.probabilities(mixed)
    assert together.shape == (12, 10)
    for image, row in zip(mixed, together, strict=True):
        assert np.abs(predictor.probabilities([image])[0] - row).max() < 1e-5
    assert len({tuple(row.round(3)) for row in together}) > 6


def test_files_get_the_labels_that_training_would_give(exported, predictor, tmp_path):
    prepared = exported.prepared
    rows = prepared.indices("validation")[:12]
    files = []
    for row in rows:
        files.append(tmp_path / f"{row}.png")
        Image.fromarray(DigitsSource().load(int(row))).save(files[-1])
    predictions = list(predictor.predict(files, batch_size=5))
    expected = predict_probabilities(
        exported.backbone, ImageSubset(prepared.images, prepared.labels, rows)
    )
    assert [answer.source for answer in predictions] == [str(file) for file in files]
    for answer, probabilities in zip(predictions, expected, strict=True):
        label, probability = answer.ranked[0]
        assert label == exported.card.classes[probabilities.argmax()]
        assert probability == pytest.approx(probabilities.max(), abs=1e-4)
        assert [p for _, p in answer.ranked] == sorted((p for _, p in answer.ranked), reverse=True)
        assert {name for name, _ in answer.ranked} == set(exported.card.classes)


def test_what_cannot_be_used_is_answered_with_the_reason_and_stops_nothing(predictor, tmp_path):
    good = png(DigitsSource().load(0))
    (tmp_path / "empty.png").touch()
    images = [
        ("good", good),
        ("cut", png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[:-500]),
        ("text", b"I am no image"),
        tmp_path / "empty.png",
        tmp_path / "absent.png",
        ("again", good),
    ]
    predictions = list(predictor.predict(images, batch_size=4))
    reasons = [answer.error for answer in predictions]
    assert reasons[0] == reasons[5] == ""
    assert "damaged" in reasons[1]
    assert "no image that can be read" in reasons[2]
    assert "is empty" in reasons[3]
    assert "no such file" in reasons[4]
    assert predictions[0].ranked == predictions[5].ranked
    assert not any(answer.ranked for answer in predictions[1:5])


def test_a_limit_on_pixels_holds_before_anything_is_decoded(predictor):
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    with pytest.raises(UnusableImageError, match="more than 1,000,000 pixels"):
        predictor.decode(bomb.getvalue(), max_pixels=1_000_000)
    with pytest.raises(UnusableImageError, match="more than 89,478,485 pixels"):
        predictor.decode(bomb.getvalue())


def test_an_image_that_would_grow_beyond_the_limit_on_its_way_is_refused(predictor):
    """ONNX Runtime brings the width to size first: one pixel wide, it grows 48 times."""
    with pytest.raises(UnusableImageError, match=r"too narrow for its height \(1 x 2000000 pix"):
        predictor.decode(png(np.zeros((2_000_000, 1), np.uint8)))
    with pytest.raises(UnusableImageError, match="too narrow"):
        predictor.decode(png(np.zeros((30_000, 1), np.uint8)), max_pixels=1_000_000)
    assert predictor.decode(png(np.zeros((1, 30_000), np.uint8)), 1_000_000).shape[1] == 30_000


def test_large_images_are_computed_in_smaller_batches_to_the_same_answers(predictor, monkeypatch):
    asked = []

    class Session:
        def run(self, names, inputs, options):
            asked.append(len(inputs["image"]))
            return real.run(names, inputs, options)

    real = predictor._session
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (1500, 1000, 3), np.uint8) for _ in range(5)]
    alone = [predictor.probabilities([image])[0] for image in images]
    monkeypatch.setattr(predictor, "_session", Session())
    assert np.array_equal(predictor.probabilities(images), np.stack(alone))
    assert asked == [2, 2, 1]  # 1.5 million pixels each, at most 2^22 together


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_pixels_of_another_form_are_refused(predictor, image):
    with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\], got"):
        predictor.probabilities([image])


def test_several_threads_may_ask_at_once(predictor):
    images = [DigitsSource().load(index) for index in range(8)]
    expected = [predictor.probabilities([image]) for image in images]
    answers: dict[int, np.ndarray] = {}

    def ask(index: int) -> None:
        for _ in range(5):
            answers[index] = predictor.probabilities([images[index]])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, answer in answers.items():
        assert np.array_equal(answer, expected[index])
    assert len(answers) == len(images)


def test_files_that_are_no_model_of_ours_are_refused_with_what_to_do(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model .*absent\.onnx"):
        Predictor(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("I am no model")
    with pytest.raises(ValueError, match=r"text\.onnx cannot be read as an ONNX model"):
        Predictor(tmp_path / "text.onnx")
    (tmp_path / "cut.onnx").write_bytes(exported.path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.onnx cannot be read as an ONNX model"):
        Predictor(tmp_path / "cut.onnx")
    foreign = onnx.load(exported.path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="none that `biotune export` of this version wrote"):
        Predictor(tmp_path / "foreign.onnx")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "biotune-classifier/2"}, "its format is 'biotune-classifier/2'"),
        ({"classes": '["a", "b"]'}, "names \\['a', 'b'\\] for 10 outputs"),
        ({"classes": '"abcdefghij"'}, "names 'abcdefghij' for 10 outputs"),
        ({"image_size": '"large"'}, "its image_size is 'large'"),
        ({"input": '{"background": "nowhere"}'}, "unknown color specifier"),
        ({"input": "{}"}, "it lacks 'background'"),
    ],
)
def test_metadata_of_another_form_is_refused(exported, tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        Predictor(with_metadata(exported.path, tmp_path / "model.onnx", changes))


def test_what_others_add_to_the_metadata_does_no_harm(exported, tmp_path):
    file = with_metadata(exported.path, tmp_path / "model.onnx", {"author": "me, 2026"})
    assert Predictor(file).metadata["author"] == "me, 2026"


def with_metadata(model, file, changes):
    changed = onnx.load(model)
    entries = {entry.key: entry.value for entry in changed.metadata_props} | changes
    onnx.helper.set_model_props(changed, entries)
    onnx.save(changed, file)
    return file


def test_a_device_that_is_not_there_is_said_and_not_replaced(exported):
    with pytest.raises(ValueError, match=r"has no CUDA .* or choose the device cpu"):
        Predictor(exported.path, device="cuda")
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        Predictor(exported.path, device="tpu")


def test_folders_globs_and_standard_input_are_found(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "b/.hidden/3.png", "b/notes.txt", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files = find_images((str(tmp_path / "b"), "-", str(tmp_path / "*.png")), io.BytesIO(b"content"))
    assert files == [
        tmp_path / "b/1.JPG",
        tmp_path / "b/2.png",
        ("-", b"content"),
        tmp_path / "c.png",
    ]
    deep = find_images((str(tmp_path / "**/*.png"),), io.BytesIO())
    assert tmp_path / "b/2.png" in deep
    (tmp_path / "[odd].png").write_bytes(b"x")
    assert find_images((str(tmp_path / "[odd].png"),), io.BytesIO()) == [tmp_path / "[odd].png"]
    with pytest.raises(ValueError, match=r"nothing matches '.*\*\.gif'"):
        find_images((str(tmp_path / "*.gif"),), io.BytesIO())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image in the folder .*empty"):
        find_images((str(tmp_path / "empty"),), io.BytesIO())


def test_the_metadata_is_json(exported):
    texts = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert texts["format"] == "biotune-classifier/1"
    recipe = json.loads(texts["input"])
    assert recipe["crop"] is None
    assert recipe["mean"] == [0.5, 0.5, 0.5]
    assert "48 x 48" in recipe["resize"]
