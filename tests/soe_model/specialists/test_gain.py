"""One line says what a specialist gains, and where it gains nothing says what to use."""

import pytest

from soe_model.specialists.evaluation import student_90
from soe_model.specialists.gain import gain_line, gain_of

BLEND = {
    "share": 0.5,
    "differences": {"0.25": -0.02, "0.5": -0.03},
    "errors": {"0.25": 0.01, "0.5": 0.01},
    "units": 5,
}
HOW = {"method": "blended", "blend": BLEND}


def losses(low, high):
    return {"losses": {"windows": 20, "generic_instance": 2.0, "made": 1.96875, "gain_interval": [low, high]}}


def test_text_kept_apart_is_said_before_the_texts_given():
    assert gain_line(HOW, losses(0.01, 0.05)) == (
        "Gain: +0.0312 nats per token over the generic instance (90%: +0.0100 to +0.0500), on 20 windows of text "
        "kept apart."
    )
    line = gain_line(HOW, {})
    assert line.startswith("Gain: +0.0300 nats per token") and "(90%: +0.0087 to +0.0513)" in line
    assert "cross-fitted on the texts given" in line


def test_an_interval_with_zero_is_no_sure_gain():
    line = gain_line({"method": "nearest-centroids"}, losses(-0.01, 0.05))
    assert line.startswith("No sure gain: the generic model may do as well (+0.0312 nats per token")
    unsure = BLEND | {"errors": {"0.5": 0.02}}
    assert gain_line({"method": "blended", "blend": unsure}, {}).startswith("No sure gain: the generic model")


@pytest.mark.parametrize("high", [0.02, -0.01])
def test_what_is_no_better_than_the_generic_model_says_to_use_that(high):
    worse = {"losses": losses(-0.05, high)["losses"] | {"made": 2.03125}}
    line = gain_line({"method": "nearest-centroids"}, worse)
    said = "No gain: use the generic model, which the method generic makes (-0.0312 nats per token"
    assert line.startswith(said)
    assert gain_line({"method": "generic"}, worse) == "This is the generic model."


def test_a_share_of_nothing_is_the_generic_model():
    line = gain_line({"method": "blended", "blend": BLEND | {"share": 0.0}}, losses(0.0, 0.0))
    assert line.startswith("No gain: use the generic model, which this is: no domain weights")
    how = {"method": "refined", "blend": BLEND | {"share": 0.0}, "refined": {"steps": 0}}
    assert gain_line(how, {}).endswith("surely better on them, and no steps from there.")
    line = gain_line({"method": "blended", "blend": {"share": 0.0, "units": 0}}, {})
    assert line.startswith("No gain: use the generic model, which this is: there was too little text")


@pytest.mark.parametrize(
    ("how", "counts"),
    [
        ({"method": "refined", "refined": {"steps": 5, "gain": "x", "units": 4, "gain_error": 0.1}}, {}),
        ({"method": "refined", "refined": {"steps": 5, "gain": 0.1, "units": 1, "gain_error": 0.1}}, {}),
        (HOW, {"losses": {"gain_interval": [0.1, 0.2]}}),
        (HOW, {"losses": {"gain_interval": 0.1, "generic_instance": 2.0, "made": 1.9, "windows": 3}}),
    ],
)
def test_a_recipe_that_says_nonsense_measured_nothing(how, counts):
    assert gain_of(how, counts) is None


def test_the_interval_of_few_values_is_students():
    scipy = pytest.importorskip("scipy.stats")
    for values in (2, 3, 5, 11, 12, 20, 100, 10_000):
        assert student_90(values) == pytest.approx(scipy.t.ppf(0.95, values - 1), abs=0.02)


@pytest.mark.parametrize(
    "how", [{}, {"blend": 1}, {"blend": {"share": 0.25}}, {"blend": {"share": "x", "differences": []}}]
)
def test_what_was_not_measured_is_not_said(how):
    assert gain_of(how, {}) is None and "not measured" in gain_line(how, {})
