"""The schema of ``params.yaml``: one section per stage, plus what they share.

Everything is checked before any work begins; an unknown key, a wrong type or an impossible value is
one line that names the key.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from PIL import ImageColor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from biotune.images.sources import SOURCES


class ParamsError(ValueError):
    """``params.yaml`` cannot be read, or says something impossible."""


def _unique(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("each seed may occur once")
    return seeds


def _device(device: object) -> object:
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError("expected auto, cpu, cuda or cuda:1")
    return device


def _source(source: str) -> str:
    if source not in SOURCES:
        near = get_close_matches(source, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected one of {', '.join(SOURCES)}{hint}")
    return source


def _colour(colour: str) -> str:
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise ValueError("expected a colour as CSS writes it, such as white or #808080") from error
    return colour


def _registered_model(name: str) -> str:
    if not name or re.search(r"[/:]", name):  # which MLflow does not take
        raise ValueError("expected a name without / and :")
    return name


def _workers(workers: object) -> object:
    if workers != "auto" and (type(workers) is not int or workers < 1):
        raise ValueError("expected auto, or how many, at least 1")
    return workers


Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_unique)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TableParams(_Section):
    """The labels of ``prepare.source: image_csv``."""

    file: str
    image_column: str
    label_column: str
    split_column: str | None


class PrepareParams(_Section):
    """Where the images are, and how they are split."""

    source: Annotated[str, AfterValidator(_source)]
    path: str
    table: TableParams | None
    background: Annotated[str, AfterValidator(_colour)]
    max_rejected: Share
    image_size: Annotated[int, Field(ge=16, le=2048)]
    train_images: Count | None
    validation_images: Count | None
    seed: Seed

    @model_validator(mode="after")
    def _table_where_it_is_needed(self) -> Self:
        if (self.table is not None) != SOURCES[self.source].needs_table:
            those = ", ".join(name for name, kind in SOURCES.items() if kind.needs_table)
            raise ValueError(
                f"table is needed for source: {those}, and must be null for any other source"
            )
        return self


class ModelParams(_Section):
    """The pretrained network."""

    backbone: str
    weights: str


class _Training(_Section):
    epochs: Count
    patience: Count
    batch_size: Annotated[int, Field(ge=2)]
    base_lr: Annotated[float, Field(gt=0, le=1)]
    training_seeds: Seeds
    metric: Literal["balanced_accuracy", "accuracy", "f1_macro", "auroc"]
    class_weights: Literal["none", "balanced", "effective_number"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    augment: Literal["none", "flip", "randaugment", "trivialaugment"]


class SearchParams(_Training):
    """The evolutionary search; see the method's sections 3 and 5 for each word."""

    population: Annotated[int, Field(ge=2)]
    generations: Annotated[int, Field(ge=0)]
    elites: Count
    seed: Seed
    folds: Count
    head: Literal["evolved", "trainable"]
    seed_recipes: bool
    surgical_scan: bool
    smoothed_ranking: bool
    rescore_elites: bool
    reproduction: Literal["batch", "sequential"]
    racing: bool | Literal["seeds", "epochs"]
    confirm_top_k: Count
    confirm_on: Literal["resampled", "validation"]

    @property
    def races_seeds(self) -> bool:
        """Whether hopeless candidates get no further training seeds."""
        return self.racing in (True, "seeds")

    @property
    def races_epochs(self) -> bool:
        """Whether hopeless runs get no further epochs."""
        return self.racing in (True, "epochs")

    @model_validator(mode="after")
    def _elites_leave_room(self) -> Self:
        if self.elites >= self.population:
            raise ValueError(
                f"elites must be fewer than population ({self.population}), got {self.elites}"
            )
        return self


class FinetuneParams(_Training):
    """The final training of the winner and of the best recipe."""


class EvaluateParams(_Section):
    """Nothing to choose yet."""


class ExportParams(_Section):
    """When an exported model, and each of its smaller forms, is good enough."""

    min_label_agreement: Share
    int8_max_drop: Share | None
    fp16_max_drop: Share | None


class RuntimeParams(_Section):
    """The machine: none of it may change what is found, but the first three by float noise."""

    device: Annotated[str, BeforeValidator(_device)]
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    compile: bool
    feature_cache_bytes: Annotated[int, Field(ge=0)]
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_workers)]


class TrackingParams(_Section):
    """MLflow."""

    experiment: Annotated[str, Field(min_length=1)]
    registered_model: Annotated[str, AfterValidator(_registered_model)]


class Params(_Section):
    """All of ``params.yaml``."""

    prepare: PrepareParams
    model: ModelParams
    search: SearchParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    export: ExportParams
    runtime: RuntimeParams
    tracking: TrackingParams


def load_params(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        ParamsError: one line for each fault, naming file and key.
    """
    try:
        # DVC reads the file in the same way: YAML 1.2, in which 1e-3 is a number, and a key that
        # occurs twice is an error.
        loaded = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParamsError(
            f"there is no params file {str(path)!r}; run from the repository's root, or name one "
            "with --params"
        ) from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ParamsError(f"{path}: expected sections such as 'search:', got {loaded!r}")
    try:
        return Params.model_validate(loaded)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors()]
        raise ParamsError("\n".join(f"{path}: {fault}" for fault in faults)) from error


def _fault(fault: ErrorDetails) -> str:
    keys = [str(key) for key in fault["loc"]]
    key = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(keys)}"
    if fault["type"] == "missing":
        return f"{key}: missing; every key is written out, copy it from the default params.yaml"
    if fault["type"] == "model_type":
        return f"{key}: expected a section with keys, got {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], dict):
        return f"{key}: {message}"
    return f"{key}: {message}, got {fault['input']!r}"


def _suggestion(keys: list[str]) -> str:
    """', did you mean …' for a key that is nearly right, else the keys that there are."""
    section: type[BaseModel] = Params
    for key in keys[:-1]:
        annotation = section.model_fields[key].annotation
        if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
            return ""
        section = annotation
    known = list(section.model_fields)
    near = get_close_matches(keys[-1], known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known) or 'none'}"
