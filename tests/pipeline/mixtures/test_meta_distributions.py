"""The laws of mixtures, each by itself: moments, sizes, bounds. Their bits: test_plan.py."""

import numpy as np
import pytest

from pipeline.mixtures.meta_distributions import Dirichlet, Fixed, Given, Sparse, window_shares
from pipeline.mixtures.plan import MixturePlan


def chi_square(found, expected):
    return ((found - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("by_size", [False, True])
def test_dirichlet_moments(by_size):
    """Mean and variance of Dirichlet weights are known."""
    sizes = np.array([1, 2, 3, 6])
    alpha = 0.7 * (4 * sizes / 12 if by_size else np.ones(4))
    law = Dirichlet(concentration=0.7, by_size=by_size)
    weights = MixturePlan(sizes, law, seed=4, batch_size=1).steps(0, 40_000).weights_TWs[:, 0]
    mean = alpha / alpha.sum()
    np.testing.assert_allclose(weights.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(weights.var(0), mean * (1 - mean) / (alpha.sum() + 1), rtol=0.05)


@pytest.mark.parametrize("by_size", [False, True])
def test_the_smallest_concentration_gives_the_sparsest_mixtures(by_size):
    """Nearly all of a mixture is one domain, whose gamma variate is mostly too small to be a number."""
    law = Dirichlet(concentration=1e-3, support_size=4, by_size=by_size)
    weights = MixturePlan(np.full(64, 5), law, seed=4, batch_size=1).steps(0, 4000).weights_TWs[:, 0]
    largest = weights.max(1)
    assert abs(largest.mean() - 0.998) < 0.001 and (largest < 0.9).mean() < 0.01
    assert chi_square(np.bincount(weights.argmax(1), minlength=4), np.full(4, 1000)) < 16.3
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_generic_mixture_draws_windows_equally():
    sizes = np.array([10, 0, 30, 60])
    generic = MixturePlan(sizes, Fixed(window_shares(sizes)), seed=0, batch_size=10_000)
    steps = generic.steps(4, 5)
    found = np.bincount(steps.domain_TB[0], minlength=4)
    assert found[1] == 0
    assert chi_square(found[[0, 2, 3]], np.array([1000, 3000, 6000])) < 13.8
    np.testing.assert_allclose(steps.domain_weights(4, 4), [[0.1, 0, 0.3, 0.6]])


def test_whole_support_is_the_uniform_meta_distribution():
    every = MixturePlan(np.array([4, 4, 0, 4]), Sparse(support_size=3), seed=0, batch_size=2).steps(0, 5)
    assert (every.support_TWs == [0, 1, 3]).all()


def test_given_mixtures_may_differ_in_size():
    def function(number):
        return (np.array([2]), np.ones(1)) if number % 2 else (np.array([3, 0, 1]), np.array([0.5, 0.5, 0]))

    steps = MixturePlan(
        np.full(4, 9), Given(function, "x"), seed=0, batch_size=200, mixtures_per_step=2
    ).steps(3, 5)
    for step in (3, 4):
        assert steps.domain_weights(step, 4).tolist() == [[0.5, 0, 0, 0.5], [0, 0, 1, 0]]
        assert set(steps.domain_TB[step - 3, :100]) == {0, 3} and set(steps.domain_TB[step - 3, 100:]) == {2}


@pytest.mark.parametrize("weights", [["a", "b"], [1j, 0], [None, 1.0]])
def test_fixed_weights_are_numbers(weights):
    with pytest.raises(ValueError, match="domain weights must be real numbers"):
        Fixed(weights)


def test_a_concentration_out_of_bounds_is_refused():
    with pytest.raises(ValueError, match="concentration is 0; it must be between"):
        Dirichlet(concentration=0)
