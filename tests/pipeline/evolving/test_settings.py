"""Every run of a search, and of its confirmation, is trained as the params say."""

from __future__ import annotations

from pipeline.params import Params
from pipeline.trials.machine import training_settings
from tests.pipeline.trainings import Trainings, curve, whole_search
from tests.tiny import tiny_params


def test_every_run_of_a_search_has_the_settings_of_its_section() -> None:
    changes = {"search__metric": "f1_macro", "search__class_weights": "balanced"}
    params = Params.model_validate(tiny_params(**changes, search__epochs=9)).search
    trainings = Trainings(lambda task: curve(0.5))
    result = whole_search(params, trainings)
    assert len(trainings.asked) > len(result.evaluated)  # the confirmation's are among them
    assert {task.settings for task in trainings.asked} == {training_settings(params)}
