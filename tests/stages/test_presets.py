"""Every preset is what it was, and passes every stage's dry run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from biotune.commands.group import main
from biotune.finetuning.compute import Compute
from biotune.finetuning.cost import StepCost, step_cost
from pipeline.params import Params, SearchParams, load_params
from pipeline.presets import preset_names, rendered, resolved, write_preset
from tests.tiny import NETWORK

WIDE = {"COLUMNS": "200"}
RESOLVED = Path(__file__).with_name("resolved_presets.yaml")
STAGES = ("prepare", "search", "finetune", "evaluate", "export")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty, but for the images of those presets whose images are never downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    rows = ["image_name,patient_id,target,benign_malignant"]
    for number in range(40):
        picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        for file in (f"images/{'ab'[number % 2]}/{number}.png", f"isic2020/I{number}.jpg"):
            path = tmp_path / "data" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        rows.append(f"I{number},P,{number % 2},{('benign', 'malignant')[number % 2]}")
    (tmp_path / "data" / "isic2020" / "train.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def cost_of_a_toy(
    backbone: str, classes: int, image_size: int, batch_size: int, compute: Compute
) -> StepCost:
    """In the place of the presets' networks, which take minutes to be timed."""
    return step_cost(NETWORK, classes, 32, 8, compute)


def test_there_is_one_for_each_of_the_papers_sets_and_one_for_own_images() -> None:
    sets = [
        "cifar10",
        "dtd",
        "fgvcaircraft",
        "flowers102",
        "isic2020",
        "mnist",
        "stl10",
        "svhn",
        "usps",
    ]
    assert preset_names() == sorted(["default", "images", *(f"paper-{name}" for name in sets)])
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 0
    for name in preset_names():
        assert f"{name} " in result.output


def test_no_default_changes_a_preset_unseen() -> None:
    resolutions = {name: resolved(name)[1] for name in preset_names()}
    assert resolutions.pop("default") == Params()
    expected = yaml.safe_load(RESOLVED.read_text())
    assert {name: params.model_dump() for name, params in resolutions.items()} == expected


def test_a_preset_lies_over_its_base_and_none_of_its_words_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.presets.PRESETS", tmp_path)
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "b.yaml").write_text("# below\nsearch: {elites: 3, folds: 2}\n")
    (tmp_path / "a.yaml").write_text("# above\nbase: b\nsearch: {elites: 4}\n# not at the top\n")
    comment, params = resolved("a")
    assert comment == "# above\n# below\n"
    assert params.search == SearchParams(elites=4, folds=2)
    (tmp_path / "a.yaml").write_text("serach: {elites: 4}\n")
    with pytest.raises(ValueError, match="serach"):
        resolved("a")


@pytest.mark.parametrize("name", preset_names())
def test_what_is_written_says_every_key_and_what_it_means(name: str, tmp_path: Path) -> None:
    write_preset(name, tmp_path / "my.yaml")
    assert load_params(tmp_path / "my.yaml") == resolved(name)[1]
    lines = (tmp_path / "my.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("# balanced_accuracy | accuracy | f1_macro | auroc; " in line for line in lines) == 1


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("paper-")])
def test_a_paper_preset_is_the_published_setting(name: str) -> None:
    params = resolved(name)[1]
    search = params.search
    assert params.model.backbone == "resnet50"
    assert (search.population, search.generations, search.elites, search.folds) == (10, 10, 3, 2)
    assert (search.epochs, search.patience, search.batch_size) == (30, 3, 96)
    assert (search.base_lr, search.training_seeds) == (0.001, [0, 1, 2])
    assert search.rescore_elites
    assert not any((search.seed_recipes, search.surgical_scan, search.screening, search.racing))
    assert (search.head, search.reproduction) == ("evolved", "sequential")
    assert (search.metric, search.augment) == ("balanced_accuracy", "none")


@pytest.mark.parametrize("name", preset_names())
def test_every_stage_of_a_preset_passes_its_dry_run_and_leaves_nothing(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dry_run.step_cost", cost_of_a_toy)
    write_preset(name, folder / "params.yaml")
    before = sorted(folder.rglob("*"))
    for stage in STAGES:
        result = CliRunner().invoke(main, [stage, "--dry-run"])
        assert result.exit_code == 0, result.output
        assert f"Dry run of {stage}" in result.output
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_the_papers_search_is_140_evaluations_and_the_elites_extra_scores(folder: Path) -> None:
    write_preset("paper-flowers102", folder / "params.yaml")
    result = CliRunner().invoke(main, ["search", "--dry-run"], env=WIDE)
    assert result.exit_code == 0, result.output
    rows = {cells[1].strip(): cells[2].strip() for cells in _cells(result.output)}
    assert rows["candidates"] == "170 x 3 seeds"
    assert rows["runs"] == "at most 520, of at most 30 epochs"
    assert rows["time"].startswith("at most ")
    assert rows["time"].endswith((" h", " days"))
    assert "GiB for each of" in rows["memory"]
    assert "102 classes (as published; they are not downloaded yet)" in rows["images"]


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [line.split("│") for line in lines]


def test_init_writes_a_preset_and_keeps_what_was_there(folder: Path) -> None:
    (folder / "params.yaml").write_text("mine: 1\n")
    for _ in range(2):  # the second finds that nothing is to be kept
        result = CliRunner().invoke(main, ["init", "images"])
        assert result.exit_code == 0, result.output
    assert (folder / "params.yaml").read_text() == rendered(*resolved("images"))
    assert (folder / "params.yaml.old").read_text() == "mine: 1\n"
    CliRunner().invoke(main, ["init", "paper-dtd"])
    assert (folder / "params.yaml.old2").read_text() == rendered(*resolved("images"))


def test_an_unknown_preset_is_one_line_and_writes_nothing(folder: Path) -> None:
    result = CliRunner().invoke(main, ["init", "paper-flowers"])
    assert result.exit_code == 1
    assert "no preset 'paper-flowers'; did you mean paper-flowers102?" in result.output
    assert not (folder / "params.yaml").exists()
