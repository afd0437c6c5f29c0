"""Settings that the chosen method or law has no use for."""

from __future__ import annotations

import json

import pytest

from flows.settings import Pretrain, refuse_unused
from flows.training.laws import SETTINGS_OF_LAW


def check(**settings) -> None:
    refuse_unused(Pretrain.model_validate_json(json.dumps(settings)), "meta_distribution", SETTINGS_OF_LAW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"concentration": 2.0},
            "concentration is 2.0, which meta_distribution=sparse does not use.*dirichlet",
        ),
        ({"concentration": 1.0}, "concentration is 1.0, .* leave it out"),  # the default, given all the same
        ({"meta_distribution": "uniform", "by_size": False}, "by_size is False.*sparse or dirichlet"),
    ],
)
def test_a_setting_that_was_given_and_is_not_read_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        check(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"meta_distribution": "uniform"},
        {"ratios": None},
        {"meta_distribution": "dirichlet", "concentration": 1.0},
    ],
)
def test_what_was_not_given_or_is_read_passes(settings):
    check(**settings)


@pytest.mark.parametrize(("given", "least"), [({}, 4), ({"min_workers": 2}, 2)])
def test_the_fewest_workers(given, least):
    assert Pretrain(num_workers=4, **given).least_workers == least
