"""The schema of ``params.yaml``, with the defaults: a section per stage, plus what they share.

Everything is checked before any work begins; an unknown key, a wrong type or an impossible value is
one line that names the key.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from PIL import ImageColor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from biotune.evolution import HeadMode, ReproductionMode
from biotune.finetuning.choices import Augmentation, ClassWeights, Metric, Precision
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
    if workers != "auto" and (type(workers) is not int or workers < 0):
        raise ValueError("expected auto, how many, or 0: in this process")
    return workers


Source = Annotated[
    str,
    AfterValidator(_source),
    Field(description=f"{' | '.join(SOURCES)}; torchvision's are downloaded when first used"),
]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_unique)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

_LEFT_OUT = object()
"""In the place of each key that a file lacks."""


class _Section(BaseModel):
    """Its fields' defaults and docstrings are the values and comments of ``biotune init``."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, content: Any, info: ValidationInfo) -> Any:
        """No default stands in for a key of a file: DVC interpolates and changes what is there."""
        if info.context == "file" and isinstance(content, dict):
            return dict.fromkeys(cls.model_fields, _LEFT_OUT) | content
        return content


class TableParams(_Section):
    """The labels of ``prepare.source: image_csv``."""

    file: str
    """the table of labels, anywhere"""
    image_column: str
    """paths relative to prepare.path, with the file's ending or without"""
    label_column: str
    split_column: str | None
    """null, or a column of train, validation and test"""


class PrepareParams(_Section):
    """Where the images are, and how they are split."""

    source: Source = "digits"
    path: str = "data"
    """where the images are, or are downloaded to; digits come with scikit-learn"""
    table: TableParams | None = None
    """of image_csv: {file: labels.csv, image_column: image, label_column: label, split_column:
    null}"""
    background: Annotated[str, AfterValidator(_colour)] = "white"
    """what shows through transparent pixels"""
    max_rejected: Share = 0.05
    """share of the images that may be unreadable or have two labels"""
    image_size: Annotated[int, Field(ge=16, le=2048)] = 64
    """pixels; every image is stretched to a square of this"""
    train_images: Count | None = 300
    """a number, or null: all (split folders), else 70 %"""
    validation_images: Count | None = 300
    """a number, or null: all (split folders), else 15 %; the rest is test"""
    seed: Seed = 0
    """of the split"""

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

    backbone: str = "efficientnet_lite0"
    """`biotune backbones` lists them"""
    weights: str = "imagenet"
    """imagenet | a name of torchvision's | none | path of a state dict"""


class _Training(_Section):
    epochs: Count = 8
    patience: Count = 3
    """epochs without a better one, after which a run ends"""
    batch_size: Annotated[int, Field(ge=2)] = 32
    base_lr: Annotated[float, Field(gt=0, le=1)] = 0.001
    training_seeds: Seeds = [0]
    """a genome's fitness is the mean over these"""
    metric: Metric = "balanced_accuracy"
    """auroc is of two classes; in balanced_accuracy each class counts alike, however rare"""
    class_weights: ClassWeights = "none"
    """rare classes count more in the loss"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Augmentation = "none"
    """random changes of the images that are trained on; frozen blocks are then computed anew each
    time; not where left and right matter (text, radiographs)"""


class SearchParams(_Training):
    """The evolutionary search; see the method's sections 3 and 5 for each word."""

    population: Annotated[int, Field(ge=2)] = 6
    generations: Annotated[int, Field(ge=0)] = 2
    elites: Count = 2
    seed: Seed = 0
    folds: Count = 1
    """2: each generation sees one half of the data, in turn"""
    head: HeadMode = "evolved"
    """trainable: the gene then sets only the head's rate"""
    seed_recipes: bool = True
    """up to half of generation 0 are known recipes"""
    surgical_scan: bool = True
    """first each block alone, then the best of them together"""
    rescore_elites: bool = True
    """when the fold changes, the elites are scored again on the new one"""
    reproduction: ReproductionMode = "batch"
    """batch: in parallel; sequential: as published"""
    screening: bool = True
    """many children are bred; a model of all scores so far chooses whom to train"""
    min_expected_gain: Share = 0.0
    """with screening: the search ends when the model expects less, in validation score, from the
    best plan that was not trained"""
    racing: bool = True
    """what is hopeless gets no more seeds and epochs"""
    confirm_top_k: Count = 6
    """these and the best recipe are trained on five fresh seeds; with racing the plans get one
    after another, and the worse half is dropped each time; a plan wins if it leads the recipe by
    more than a standard error"""
    confirm_on: Literal["resampled", "validation"] = "resampled"
    """resampled: train and validation divided anew; validation: as they are"""

    @model_validator(mode="after")
    def _elites_leave_room(self) -> Self:
        if self.elites >= self.population:
            raise ValueError(
                f"elites must be fewer than population ({self.population}), got {self.elites}"
            )
        return self

    @model_validator(mode="after")
    def _only_a_model_expects_a_gain(self) -> Self:
        if self.min_expected_gain and not self.screening:
            raise ValueError(
                f"min_expected_gain needs screening: true, or must be 0, got "
                f"{self.min_expected_gain:g} with screening: false"
            )
        return self


class FinetuneParams(_Training):
    """The final training of the winner and of the best recipe."""

    epochs: Count = 12
    patience: Count = 6
    training_seeds: Seeds = [0, 1, 2]
    """the best on validation is kept"""


class EvaluateParams(_Section):
    """Nothing to choose yet."""


class ExportParams(_Section):
    """When an exported model, and each of its smaller forms, is good enough."""

    min_label_agreement: Share = 0.999
    """share of test images on which ONNX Runtime and torch must agree"""
    int8_max_drop: Share | None = 0.01
    """model.int8.onnx is kept if validation accuracy falls by at most this (0.01: one point);
    null: it is not made"""
    fp16_max_drop: Share | None = 0.01
    """the same of model.fp16.onnx, for GPUs"""


class RuntimeParams(_Section):
    """The machine: none of it may change what is found, but the first three by float noise."""

    device: Annotated[str, BeforeValidator(_device)] = "auto"
    """auto | cpu | cuda | cuda:1"""
    precision: Literal["auto", Precision] = "auto"
    """auto: bf16 where it is computed in, else fp32"""
    compile: bool = False
    """torch.compile the network; in a study on a CPU it did not pay"""
    feature_cache_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000
    """memory for what frozen blocks make of the images, in all"""
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_workers)] = "auto"
    """trainings side by side: auto: one per core on CPU, one per GPU; 0: in the stage's own
    process, for a debugger"""


class TrackingParams(_Section):
    """MLflow."""

    experiment: Annotated[str, Field(min_length=1)] = "biotune"
    registered_model: Annotated[str, AfterValidator(_registered_model)] = "biotune"
    """name in MLflow's registry; `champion` is its best version"""


class Params(_Section):
    """All of ``params.yaml``; without arguments, the defaults."""

    prepare: PrepareParams = PrepareParams()
    model: ModelParams = ModelParams()
    search: SearchParams = SearchParams()
    finetune: FinetuneParams = FinetuneParams()
    evaluate: EvaluateParams = EvaluateParams()
    export: ExportParams = ExportParams()
    runtime: RuntimeParams = RuntimeParams()
    tracking: TrackingParams = TrackingParams()


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
        return Params.model_validate(loaded, context="file")
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors()]
        raise ParamsError("\n".join(f"{path}: {fault}" for fault in faults)) from error


def _fault(fault: ErrorDetails) -> str:
    keys = [str(key) for key in fault["loc"]]
    key = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(keys)}"
    if fault["input"] is _LEFT_OUT:
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
    names = list(section.model_fields)
    near = get_close_matches(keys[-1], names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(names) or 'none'}"
