"""How many steps a specialist's coefficients go on: only as many as surely help."""

import numpy as np
import pytest

from soe_model.specialists.refining import LEAST_UNITS, LOOKS, choose_steps

EVEN = np.full(8, 100)


def differences(means, spread=0.01, seed=0):
    """At each look: exactly these means over eight units, and about this spread."""
    noise = np.random.default_rng(seed).normal(scale=spread, size=(len(LOOKS), 8))
    return np.array(means)[:, None] + noise - noise.mean(1, keepdims=True)


@pytest.mark.parametrize(
    ("means", "steps"),
    [([-0.03, -0.05, -0.02], 10), ([-0.03, 0.05, 0.08], 5), ([0, 0, 0], 0), ([0.01, 0.01, 0.01], 0)],
)
def test_the_lowest_bound_is_chosen(means, steps):
    assert choose_steps(differences(means), np.zeros(8), EVEN).steps == steps


def test_what_is_not_sure_is_not_chosen():
    wide = differences([-0.03, -0.05, -0.02])
    wide[1] += np.linspace(-1, 1, 8)  # the lowest mean, but nobody knows
    assert choose_steps(wide, np.zeros(8), EVEN).steps == 5


def test_few_units_say_nothing_of_others():
    rows = differences([-0.03, -0.05, -0.02])
    enough, few = (
        choose_steps(rows[:, :some], np.zeros(some), EVEN[:some]) for some in (LEAST_UNITS, LEAST_UNITS - 1)
    )
    assert enough.steps and not few.steps and few.units == LEAST_UNITS - 1


def test_the_gain_is_over_the_generic_instance():
    generic_U = np.full(8, 0.04)  # worse than the start
    found = choose_steps(differences([-0.03, -0.05, -0.02]), generic_U, EVEN)
    assert found.gain == pytest.approx(0.09) and found.gain_error == pytest.approx(found.errors[1])
    assert choose_steps(differences([0.1, 0.1, 0.1]), generic_U, EVEN).gain == pytest.approx(0.04)
    said = found.describe()
    assert said["steps"] == 10 and said["differences"] == {"5": -0.03, "10": -0.05, "20": -0.02}
