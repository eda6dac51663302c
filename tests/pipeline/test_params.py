"""``params.yaml`` is checked before any work, and each fault is one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import Params, ParamsError, load_params
from pipeline.presets import rendered, resolved

DEFAULT = Path(__file__).parents[2] / "params.yaml"


def faults(tmp_path: Path, **changes: Any) -> str:
    """The error for the default with ``section__key=value`` changed."""
    content = yaml.safe_load(DEFAULT.read_text())
    for name, value in changes.items():
        section, key = name.split("__")
        content[section][key] = value
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as error:
        load_params(path)
    return str(error.value)


def test_the_checkouts_file_is_what_init_writes_from_the_schema() -> None:
    assert load_params(DEFAULT) == Params()
    assert DEFAULT.read_text() == rendered(*resolved("default"))


def test_an_unknown_key_is_named_with_what_was_probably_meant(tmp_path: Path) -> None:
    message = faults(tmp_path, search__populaton=5)
    assert message == (
        f"{tmp_path / 'my.yaml'}: search.populaton: unknown key; did you mean 'population'?"
    )


def test_an_unknown_key_like_no_other_lists_those_that_there_are(tmp_path: Path) -> None:
    assert "known here: backbone, weights" in faults(tmp_path, model__zzz=5)


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(DEFAULT.read_text() + "\nserach: {}\n")
    with pytest.raises(ParamsError, match="serach: unknown key; did you mean 'search'"):
        load_params(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"search__population": "six"}, "search.population: Input should be a valid integer"),
        ({"search__population": 1}, "search.population: Input should be greater than or equal"),
        ({"search__base_lr": 0}, "search.base_lr: Input should be greater than 0"),
        ({"search__base_lr": float("nan")}, "search.base_lr"),
        ({"search__base_lr": 1.01}, "search.base_lr: Input should be less than or equal to 1"),
        ({"finetune__base_lr": 1.01}, "finetune.base_lr: Input should be less than or equal to 1"),
        ({"search__head": "frozen"}, "search.head: Input should be 'evolved' or 'trainable'"),
        ({"search__training_seeds": []}, "search.training_seeds: List should have at least 1"),
        ({"search__training_seeds": [1, 1]}, "search.training_seeds: each seed may occur once"),
        ({"search__training_seeds": [0, -1]}, "search.training_seeds.1: Input should be greater"),
        ({"search__elites": 6}, "search: elites must be fewer than population (6), got 6"),
        (
            {"search__min_expected_gain": 0.001, "search__screening": False},
            "search: min_expected_gain needs screening: true, or must be 0, got 0.001",
        ),
        ({"search__seed_recipes": "yes"}, "search.seed_recipes: Input should be a valid boolean"),
        ({"search__racing": "epochs"}, "search.racing: Input should be a valid boolean"),
        ({"search__folds": 0}, "search.folds: Input should be greater than or equal to 1"),
        ({"search__reproduction": "both"}, "search.reproduction: Input should be 'batch' or 'seq"),
        ({"search__confirm_on": "test"}, "search.confirm_on: Input should be 'resampled' or 'val"),
        ({"finetune__epochs": 0}, "finetune.epochs: Input should be greater than or equal to 1"),
        ({"finetune__batch_size": 1}, "finetune.batch_size: Input should be greater than or"),
        ({"prepare__source": "digit"}, "prepare.source: expected one of digits, image_folder, "),
        ({"prepare__source": "mnits"}, "svhn; did you mean mnist?, got 'mnits'"),
        ({"prepare__source": "image_csv"}, "prepare: table is needed for source: image_csv"),
        ({"prepare__background": "whit"}, "prepare.background: expected a colour as CSS writes it"),
        ({"prepare__max_rejected": 5}, "prepare.max_rejected: Input should be less than or equal"),
        ({"search__metric": "acc"}, "search.metric: Input should be 'balanced_accuracy', 'accur"),
        ({"finetune__label_smoothing": 1.0}, "finetune.label_smoothing: Input should be less"),
        ({"finetune__augment": "mixup"}, "finetune.augment: Input should be 'none', 'flip', 'ra"),
        ({"prepare__image_size": 4}, "prepare.image_size: Input should be greater than or equal"),
        ({"prepare__image_size": 2049}, "prepare.image_size: Input should be less than or equal"),
        ({"search__class_weights": "all"}, "search.class_weights: Input should be 'none', 'balan"),
        ({"export__min_label_agreement": 1.5}, "export.min_label_agreement: Input should be less"),
        ({"export__int8_max_drop": 1.5}, "export.int8_max_drop: Input should be less than or"),
        ({"runtime__device": "tpu"}, "runtime.device: expected auto, cpu, cuda or cuda:1, got"),
        ({"runtime__precision": "fp16"}, "runtime.precision: Input should be 'auto', 'fp32', 'tf"),
        (
            {"runtime__workers": -1},
            "runtime.workers: expected auto, how many, or 0: in this process, got -1",
        ),
        ({"runtime__workers": True}, "runtime.workers: expected auto, how many, or 0"),
        ({"search__interval": 3}, "search.interval: unknown key"),
        ({"tracking__experiment": ""}, "tracking.experiment: String should have at least 1"),
        ({"tracking__registered_model": "a/b"}, "tracking.registered_model: expected a name with"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_the_key(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    message = faults(tmp_path, **change)
    assert expected in message
    assert all(line.startswith(str(tmp_path / "my.yaml")) for line in message.splitlines())


def test_each_missing_key_is_named_and_where_to_copy_it_from(tmp_path: Path) -> None:
    """DVC interpolates them, and `dvc exp run -S` changes them: no default may stand in for one."""
    content = Params().model_dump()
    del content["search"]["elites"], content["search"]["population"], content["evaluate"]
    content["prepare"] |= {"source": "image_csv", "table": {"file": "a.csv", "image_column": "a"}}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as error:
        load_params(path)
    missing = ["prepare.table.label_column", "prepare.table.split_column", "search.population"]
    missing += ["search.elites", "evaluate"]
    said = "missing; every key is written out, copy it from the default params.yaml"
    assert str(error.value) == "\n".join(f"{path}: {key}: {said}" for key in missing)


def test_a_section_without_keys_is_named(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULT.read_text()) | {"model": None}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match="model: expected a section with keys, got None"):
        load_params(path)


def test_a_number_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(DEFAULT.read_text().replace("base_lr: 0.001", "base_lr: 1e-3"))
    assert load_params(path).search.base_lr == 0.001


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(DEFAULT.read_text() + "\nmodel: {backbone: resnet50, weights: none}\n")
    with pytest.raises(ParamsError, match='duplicate key "model"'):
        load_params(path)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    message = faults(tmp_path, search__population=0, finetune__epochs=0)
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("text", ["search: [", "just words", "- a list", ""])
def test_what_is_not_a_params_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=str(path)):
        load_params(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="--params"):
        load_params(tmp_path / "none.yaml")
