"""The share of its texts' domains that a specialist takes: only as far as surely helps."""

import numpy as np
import pytest

from soe_model.specialists.blending import CAUTION, SHARES, blend_weights, choose, unit_differences

EVEN = np.full(8, 100)


def differences(means, spread=0.01, units=8, seed=0):
    """Of the shares above 0: exactly these means over the units, and about this spread."""
    noise = np.random.default_rng(seed).normal(scale=spread, size=(len(SHARES) - 1, units))
    return np.array(means)[:, None] + noise - noise.mean(1, keepdims=True)


def test_the_lowest_bound_is_chosen():
    assert choose(differences([-0.02, -0.05, -0.06, 0.01]), EVEN).share == 0.75
    wide = differences([-0.02, -0.05, -0.06, 0.01])
    wide[2] += np.linspace(-1, 1, 8)  # the lowest mean, but nobody knows
    assert choose(wide, EVEN).share == 0.5


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_chosen_against_its_bound(seed):
    random = np.random.default_rng(seed)
    tokens_U = random.integers(1, 200, 6)
    found = choose(random.normal(scale=0.1, size=(4, 6)), tokens_U)
    bounds = {0.0: 0.0} | {
        share: mean + CAUTION * error
        for share, mean, error in zip(SHARES[1:], found.differences, found.errors, strict=True)
    }
    assert bounds[found.share] == min(bounds.values())


def test_equal_candidates_and_worse_ones_give_the_generic_instance():
    assert choose(np.zeros((4, 8)), EVEN).share == 0
    assert choose(differences([0.01, 0.02, 0.03, 0.04]), EVEN).share == 0
    assert choose(differences([-0.001, -0.001, -0.001, -0.001], spread=0.1), EVEN).share == 0


def test_fewer_texts_with_the_same_mean_shrink_to_the_generic_instance():
    many = np.tile(differences([-0.02, -0.02, -0.02, -0.02], spread=0.1), 20)
    assert choose(many, np.tile(EVEN, 20)).share > 0
    assert choose(many[:, :8], EVEN).share == 0


def test_the_order_of_the_units_changes_nothing_and_their_tokens_weigh():
    rows, order = differences([-0.02, -0.05, -0.06, 0.01]), np.random.default_rng(1).permutation(8)
    one, other = choose(rows, EVEN), choose(rows[:, order], EVEN)
    assert one.share == other.share and np.allclose(one.errors, other.errors)
    assert choose(rows, EVEN) == one
    rows[:] = [-1.0, *[1.0] * 7]
    assert choose(rows, np.array([10_000, *[1] * 7])).differences[0] < 0 < choose(rows, EVEN).differences[0]


def test_no_more_is_chosen_than_the_units_vouch_for():
    rows = differences([-0.02, -0.05, -0.06, -0.07], spread=1e-3, units=3)
    assert [choose(rows, EVEN[:3], most=most).share for most in (0.2, 0.25, 0.5, 0.75, 5)] == [
        0, 0.25, 0.5, 0.75, 1,
    ]  # fmt: skip


def test_the_mean_and_its_error_are_those_of_the_units():
    values_U = np.array([-0.3, -0.1, 0.1, -0.5])
    found = choose(np.tile(values_U, (4, 1)), np.full(4, 7))
    assert found.differences[0] == pytest.approx(values_U.mean())
    assert found.errors[0] == pytest.approx(values_U.std(ddof=1) / 2) and found.units == 4


def test_one_long_unit_beside_short_ones_is_not_sure_of_itself():
    found = choose(np.tile([-0.1, 0.4], (4, 1)), np.array([15_872, 60]))
    assert found.differences[0] == pytest.approx(-0.098, abs=1e-3)
    without = np.array([0.4, -0.1])  # the mean without the one, and without the other
    assert found.errors[0] == pytest.approx(np.sqrt(((without - found.differences[0]) ** 2).sum() / 2))
    assert found.share == 0


def test_a_units_windows_are_one_mean_by_their_tokens():
    long = [0, 2], np.array([[2.0, 3.0], *[[1.0, 3.5]] * 4]), 30
    short = [2, 0], np.array([[1.0, 2.0], *[[1.0, 4.0]] * 4]), 10
    rows, tokens_U = unit_differences([long, short])
    assert tokens_U.tolist() == [40, 40]  # unit 1 was not measured
    assert rows.tolist() == [[-0.25, 0.375]] * 4


def test_one_unit_has_no_spread():
    with pytest.raises(ValueError, match="1 units have no spread"):
        choose(np.zeros((4, 1)), np.array([5]))


def test_the_ends_of_the_path_are_exact():
    weights_K, generic_K = np.array([1 / 3, 2 / 3, 0]), np.array([0.1, 0.2, 0.7])
    assert np.array_equal(blend_weights(weights_K, generic_K, 0.0), generic_K)
    assert np.array_equal(blend_weights(weights_K, generic_K, 1.0), weights_K)
    assert blend_weights(weights_K, generic_K, 0.5).sum() == pytest.approx(1)
