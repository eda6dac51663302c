"""What a client gets: the same answers as without a server, and what operators ask for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from biotune.deployment.predictor import Prediction, Predictor
from tests.serve_process import ServeProcess, form

Digits = list[tuple[str, bytes]]


def test_one_image_as_the_body(
    server: ServeProcess, digits: Digits, expected: dict[str, Prediction]
) -> None:
    name, content = digits[0]
    for kind in ("image/png", "application/octet-stream", "image/jpeg"):  # what it holds counts
        reply = server.post(content, kind, "?top_k=2")
        (image,) = reply.json["images"]
        assert reply.status == 200
        assert [entry["label"] for entry in image["classes"]] == [
            n for n, _ in expected[name].ranked[:2]
        ]
        assert (image["label"], image["probability"]) == tuple(image["classes"][0].values())
        assert image["probability"] == pytest.approx(expected[name].ranked[0][1], abs=1e-5)
        assert "name" not in image
        assert "error" not in image


def test_many_images_as_a_form(
    server: ServeProcess, digits: Digits, expected: dict[str, Prediction]
) -> None:
    images = server.post_form(digits, "?top_k=100").json["images"]
    assert [image["name"] for image in images] == [name for name, _ in digits]
    for image in images:
        ranked = expected[image["name"]].ranked
        assert len(image["classes"]) == len(ranked)
        scores = {c["label"]: c["probability"] for c in image["classes"]}
        assert scores == pytest.approx(dict(ranked), abs=1e-5)


def test_a_broken_image_is_answered_beside_the_others(server: ServeProcess, digits: Digits) -> None:
    reply = server.post_form([digits[0], ("notes.jpg", b"no image"), ("empty.png", b"")])
    assert reply.status == 200
    first, text, empty = reply.json["images"]
    assert first["label"]
    assert text == {"name": "notes.jpg", "error": "the file is no image that can be read"}
    assert empty == {"name": "empty.png", "error": "the file is empty"}


def test_if_all_are_broken_it_says_so_and_why(server: ServeProcess) -> None:
    reply = server.post_form([("a.png", b"no"), ("b.png", b"")])
    assert reply.status == 422
    assert reply.json["detail"] == "none of the 2 images can be used"
    assert [image["name"] for image in reply.json["images"]] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "<img src=x onerror=alert(1)>.png", 'a"b.png', "été 冬.png", "a\\b.png"],
)
def test_a_name_is_only_shown_as_it_came(server: ServeProcess, digits: Digits, name: str) -> None:
    (image,) = server.post_form([(name, digits[0][1])]).json["images"]
    assert image["name"] == name


def test_images_of_many_sizes_in_one_request(server: ServeProcess, predictor: Predictor) -> None:
    from tests.biotune.serving.conftest import png

    rng = np.random.default_rng(0)
    sizes = [(8, 8), (40, 30), (8, 8), (1, 1), (1, 90), (40, 30)]
    files = [
        (f"{number}.png", png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)))
        for number, size in enumerate(sizes)
    ]
    alone = [prediction for file in files for prediction in predictor.predict([file])]
    for prediction, image in zip(alone, server.post_form(files).json["images"], strict=True):
        assert image["label"] == prediction.ranked[0][0]
        assert image["probability"] == pytest.approx(prediction.ranked[0][1], abs=1e-4)


def test_the_model_says_what_it_is(server: ServeProcess, served_model: Path) -> None:
    said = server.get("/model").json
    assert said["classes"][:3] == ["zero", "été", "冬"]
    assert said["plan"]["stem"] is None
    assert said["backbone"] == "efficientnet_lite0"
    assert said["provider"] == "CPUExecutionProvider"
    assert said["input"]["background"] == "white"
    assert said["sha256"] == hashlib.sha256(served_model.read_bytes()).hexdigest()
    assert said["limits"] == {"max_body": 2 * 2**20, "max_pixels": 25_000_000, "max_files": 64}


def test_prometheus_is_told_of_requests_images_and_batches(
    server: ServeProcess, digits: Digits
) -> None:
    def counted() -> dict[str, float]:
        reply = server.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        lines = [line for line in reply.body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = counted()
    server.post_form([*digits[:5], ("broken", b"no image")])
    server.get("/made/up")
    after = counted()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more('biotune_requests_total{path="/predict",status="200"}') == 1
    assert more('biotune_requests_total{path="other",status="404"}') == 1
    assert more('biotune_images_total{outcome="classified"}') == 5
    assert more('biotune_images_total{outcome="unusable"}') == 1
    assert more("biotune_batch_images_sum") == 5
    assert more('biotune_request_seconds_count{path="/predict"}') == 1
    assert after["biotune_queue_images"] == 0
    assert after["biotune_errors_total"] == 0
    assert not any("made" in name for name in after)


def test_health_and_readiness(server: ServeProcess) -> None:
    assert server.get("/healthz").json == {"status": "ok"}
    assert server.get("/readyz").json == {"status": "ready"}
    assert server.request("HEAD", "/healthz").status == 200


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/icon.svg"])
def test_the_page_loads_nothing_from_elsewhere(server: ServeProcess, path: str) -> None:
    reply = server.get(path)
    assert reply.status == 200
    text = reply.body.decode().replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text
    assert "https:" not in text
    assert "innerHTML" not in text
    assert "style=" not in text


def test_every_answer_has_the_headers_that_browsers_obey(server: ServeProcess) -> None:
    for path in ("/", "/model", "/nowhere", "/predict"):
        headers = server.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_programs_find_a_description_and_no_pages_from_elsewhere(server: ServeProcess) -> None:
    described = server.get("/openapi.json").json["paths"]["/predict"]["post"]
    assert set(described["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
    }
    assert {"200", "408", "413", "415", "422", "503"} <= set(described["responses"])
    assert server.get("/docs").status == server.get("/redoc").status == 404


def test_a_part_of_another_name_is_refused_with_the_right_one(
    server: ServeProcess, digits: Digits
) -> None:
    body, kind = form(digits[:1], part="image")
    reply = server.post(body, kind)
    assert (reply.status, reply.json["detail"]) == (
        422,
        "unknown part 'image' of the form: send images as files",
    )
