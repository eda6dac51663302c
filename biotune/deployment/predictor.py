"""Classify images with an exported model. Needs numpy, Pillow and ONNX Runtime alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import ImageColor

from biotune.data.decoding import UnusableImageError, decode, decode_bytes

Pixels = NDArray[np.uint8]

DEVICES: Final = ("auto", "cpu", "cuda")
"""What may compute: ``auto`` is CUDA where ONNX Runtime has it."""

_TEXTS: Final = {"backbone", "name", "format", "precision"}
"""Entries of a model's metadata that are not JSON."""

_MANY_PIXELS: Final = 2**22
"""A batch costs no more than this, or is one image; see :meth:`Predictor.cost`. A single image that
costs more leaves its memory: ONNX Runtime would keep what the largest ever needed (1.2 GB after one
image of 40 million pixels). Of less it may keep it, and is faster for that."""

_MAX_COST: Final = 89_478_485
"""As many pixels as Pillow decodes at most."""

_FORMATS: Final = ("biotune-classifier/1",)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        source: what the image is called, usually its path.
        ranked: every class with its probability in [0, 1], the most probable first; empty for an
            image that cannot be used.
        error: why it cannot be used; empty for one that can.
    """

    source: str
    ranked: tuple[tuple[str, float], ...] = ()
    error: str = ""


class Predictor:
    """An exported classifier, ready to be asked; safe to use from several threads.

    >>> predictor = Predictor(Path("artifacts/deploy/model.onnx"))        # doctest: +SKIP
    >>> for prediction in predictor.predict([Path("a.jpg")]):             # doctest: +SKIP
    ...     print(prediction.ranked[0])

    Attributes:
        path: of the model.
        metadata: what the file says of itself: ``classes``, ``plan``, ``input``, ``metrics``, …
        classes: class names in the order of the outputs.
        image_size: side of the square in pixels to which the graph brings every image.
        background: colour that shows through transparent pixels, as in training.
        provider: ONNX Runtime's name of what computes, such as ``CPUExecutionProvider``.
    """

    def __init__(self, model: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Load a model.

        Args:
            model: an ``.onnx`` file that ``biotune export`` wrote.
            device: ``auto`` (CUDA where ONNX Runtime has it), ``cpu`` or ``cuda``.
            threads: that one answer is computed with; 0 for one per core.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no model of BioTune's, or the device is not to be had.
        """
        self.path = model
        self._session = _open(model, device, threads)
        self._forgetting = onnxruntime.RunOptions()
        self._forgetting.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.provider = str(self._session.get_providers()[0])
        if device == "cuda" and self.provider != "CUDAExecutionProvider":
            raise ValueError(
                f"ONNX Runtime could not use CUDA, and would compute with {self.provider}: check "
                "the driver and the CUDA libraries, or choose the device cpu"
            )
        self.metadata = read_metadata(model, self._session)
        self.classes: tuple[str, ...] = tuple(self.metadata["classes"])
        self.image_size = int(self.metadata["image_size"])
        self.background = str(self.metadata["input"]["background"])

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Class probabilities of decoded images.

        Images of the same size are computed together, as many as memory for
        :data:`_MANY_PIXELS` allows, others one group after the other.

        Args:
            images: uint8 RGB, each [height, width, 3], of any sizes.

        Returns:
            float32 [n, classes] in the order of the images; rows sum to 1.

        Raises:
            ValueError: for another type or shape.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(
                    f"images must be uint8 [height, width, 3], got {image.dtype} "
                    f"{list(image.shape)}"
                )
            groups[image.shape].append(index)
        rows = np.empty((len(images), len(self.classes)), dtype=np.float32)
        for (height, width, _), indices in groups.items():
            cost = self.cost(height, width)
            options = self._forgetting if cost > _MANY_PIXELS else None
            most = max(1, _MANY_PIXELS // cost)
            for begin in range(0, len(indices), most):
                part = indices[begin : begin + most]
                batch = np.stack([images[index] for index in part])
                (rows[part],) = self._session.run(["probabilities"], {"image": batch}, options)
        return rows

    def cost(self, height: int, width: int) -> int:
        """Pixels of the largest array that an image becomes on its way.

        ONNX Runtime brings the width to size before the height: a narrow image grows first.
        """
        return height * max(width, self.image_size)

    def decode(self, image: Path | bytes, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """An image file, or its content, as the pixels that training would have seen.

        Args:
            image: a path, or what is in a file.
            max_pixels: of a file's content: a limit that is checked before decoding.

        Returns:
            uint8 RGB [height, width, 3].

        Raises:
            UnusableImageError: with the reason, and no file name.
        """
        if isinstance(image, bytes):
            pixels = decode_bytes(image, self.background, max_pixels)
        else:
            pixels = decode(image, self.background)
        height, width, _ = pixels.shape
        if self.cost(height, width) > min(max_pixels or _MAX_COST, _MAX_COST):
            raise UnusableImageError(
                f"it is too narrow for its height ({width} x {height} pixels): cut it into parts"
            )
        return pixels

    def rank(self, probabilities: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
        """Every class with its probability, the most probable first.

        Args:
            probabilities: of one image, [classes].
        """
        order = np.argsort(-probabilities, kind="stable")
        return tuple((self.classes[index], float(probabilities[index])) for index in order)

    def predict(
        self, images: Iterable[Path | tuple[str, bytes]], batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Classify image files; those that cannot be used are answered with the reason.

        Args:
            images: paths, or pairs of a name and a file's content.
            batch_size: how many are in memory at a time, at least 1; of large ones fewer are.

        Yields:
            One for each image, in their order.

        Raises:
            ValueError: for a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        batch: list[tuple[str, Pixels | UnusableImageError]] = []
        decoded = 0
        for image in images:
            name, content = (str(image), image) if isinstance(image, Path) else image
            try:
                pixels = self.decode(content)
                batch.append((name, pixels))
                decoded += pixels.size // 3
            except UnusableImageError as error:
                batch.append((name, error))
            if len(batch) == batch_size or decoded > _MAX_COST:
                yield from self._answers(batch)
                batch, decoded = [], 0
        yield from self._answers(batch)

    def _answers(
        self, batch: Sequence[tuple[str, Pixels | UnusableImageError]]
    ) -> Iterator[Prediction]:
        usable = [decoded for _, decoded in batch if not isinstance(decoded, UnusableImageError)]
        rows = iter(self.probabilities(usable))
        for name, decoded in batch:
            if isinstance(decoded, UnusableImageError):
                yield Prediction(name, error=str(decoded))
            else:
                yield Prediction(name, self.rank(next(rows)))


def read_metadata(model: Path, session: onnxruntime.InferenceSession) -> Mapping[str, Any]:
    """What an exported model says of itself.

    Raises:
        ValueError: if it does not say what it must, or not in the promised form.
    """
    said = session.get_modelmeta().custom_metadata_map
    try:
        metadata = {key: _parsed(key, value) for key, value in said.items()}
        classes, outputs = metadata["classes"], session.get_outputs()[0].shape[1]
        if metadata["format"] not in _FORMATS:
            raise ValueError(f"its format is {metadata['format']!r}")
        if not isinstance(classes, list) or len(classes) != outputs:
            raise ValueError(f"it names {classes!r} for {outputs} outputs")
        if not isinstance(metadata["image_size"], int):
            raise ValueError(f"its image_size is {metadata['image_size']!r}")
        ImageColor.getrgb(metadata["input"]["background"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{model} is an ONNX model, but none that `biotune export` of this version wrote "
            f"({what}): export it again"
        ) from error
    return metadata


def _parsed(key: str, value: str) -> Any:
    """What an entry of the metadata says; those that others have added may be no JSON."""
    if key in _TEXTS:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _open(model: Path, device: str, threads: int) -> onnxruntime.InferenceSession:
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}: choose one of {', '.join(DEVICES)}")
    if threads < 0:
        raise ValueError(f"threads must be 0 (one per core) or more, got {threads}")
    if not model.is_file():
        raise FileNotFoundError(f"there is no model {model}: `biotune export` writes one")
    available = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise ValueError(
            f"this ONNX Runtime has no CUDA (only {', '.join(available)}): install "
            "onnxruntime-gpu instead of onnxruntime, or choose the device cpu"
        )
    wanted = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in available:
        wanted.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait by spinning make others wait: three times the processor time an image was
    # seen on a busy machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; it warns of every shape that it cannot know beforehand
    try:
        return onnxruntime.InferenceSession(model, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's own exceptions have no public base class
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{model} cannot be read as an ONNX model ({reason})") from error
