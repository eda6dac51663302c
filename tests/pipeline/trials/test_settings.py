"""What a section of the params says of training is what a run is trained by."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from pipeline.params import Params
from pipeline.trials.machine import training_settings
from tests.tiny import tiny_params

SETTINGS = {
    "epochs": 7,
    "patience": 2,
    "batch_size": 5,
    "base_lr": 0.02,
    "metric": "f1_macro",
    "class_weights": "effective_number",
    "label_smoothing": 0.3,
    "augment": "randaugment",
}
"""Each other than the default."""


@pytest.mark.parametrize("section", ["search", "finetune"])
def test_every_setting_of_a_section_is_handed_on_under_its_name(section: str) -> None:
    changes = {f"{section}__{name}": value for name, value in SETTINGS.items()}
    params = Params.model_validate(tiny_params(**changes))
    assert asdict(training_settings(getattr(params, section))) == SETTINGS
    default = asdict(training_settings(getattr(Params.model_validate(tiny_params()), section)))
    assert all(default[name] != value for name, value in SETTINGS.items())
