"""Mixtures of the domains around a random passage: the law's numbers, its exactness, and what it refuses."""

import pickle
from fractions import Fraction

import numpy as np
import pytest

from pipeline.mixtures.meta_distributions import window_shares
from pipeline.mixtures.neighbourhoods import SCALES, Neighbourhood, exp_of_minus
from pipeline.mixtures.plan import MixturePlan

WINDOWS = np.array([5, 0, 1, 30, 8, 12])


def centroids(size=3):
    centroids_KD = np.random.Generator(np.random.PCG64(8)).normal(size=(len(WINDOWS), size))
    centroids_KD /= np.linalg.norm(centroids_KD, axis=1, keepdims=True)
    centroids_KD[1] = np.nan  # an empty domain
    return centroids_KD.astype(np.float32)


def mixtures(law, steps, **settings):
    """Dense weights [steps, K]."""
    plan = MixturePlan(WINDOWS, law, **{"seed": 3, "batch_size": 1} | settings)
    made = plan.steps(0, steps)
    return np.concatenate([made.domain_weights(step, len(WINDOWS)) for step in range(steps)])


def expected(centre, scale):
    """The mixture around one domain, computed directly."""
    known = np.nan_to_num(centroids().astype(np.float64))
    weights_K = WINDOWS * np.exp(-np.square(known - known[centre]).sum(1) / scale)
    return weights_K / weights_K.sum()


def test_each_mixture_is_the_neighbourhood_of_one_domain_at_one_scale():
    """By size, and every scale as often as the others."""
    candidates = {(k, scale): expected(k, scale) for k in np.flatnonzero(WINDOWS) for scale in SCALES}
    keys, known_CK = list(candidates), np.array(list(candidates.values()))
    found_MK = mixtures(Neighbourhood(centroids()), 20_000)
    distance_MC = np.abs(found_MK[:, None] - known_CK).max(-1)
    assert distance_MC.min(1).max() < 1e-3  # the grid of the centroids
    counts_C = np.bincount(distance_MC.argmin(1), minlength=len(keys))
    chances_C = np.array([window_shares(WINDOWS)[k] / len(SCALES) for k, _ in keys])
    statistic = ((counts_C - 20_000 * chances_C) ** 2 / (20_000 * chances_C)).sum()
    assert statistic < 43.8  # of 19 degrees: a chance of one in a thousand
    assert not found_MK[:, WINDOWS == 0].any()


def test_squared_distances_have_no_rounding_error():
    """In whole numbers of the grid, whatever order a matrix product adds in."""
    centroids_KD = np.random.Generator(np.random.PCG64(2)).normal(size=(40, 384)).astype(np.float32)
    law = Neighbourhood(centroids_KD)
    found = law._squared_distances(np.arange(40))
    for a, b in (0, 1), (7, 39), (5, 5):
        exact = sum((int(x) - int(y)) ** 2 for x, y in zip(law._grid_KD[a], law._grid_KD[b], strict=True))
        assert Fraction(found[a, b].item()) == Fraction(exact, 2**28)
    assert np.array_equal(found[::-1], law._squared_distances(np.arange(40)[::-1]))


def test_the_exponential_is_one():
    x = np.linspace(0, 40, 1001)
    np.testing.assert_allclose(exp_of_minus(x), np.exp(-x), rtol=1e-6)
    assert exp_of_minus(np.array([0.0, 1e300])).tolist() == [1.0, 0.0]


def test_it_travels_small_and_draws_the_same_there():
    law = Neighbourhood(centroids(size=384))
    before = mixtures(law, 5)
    sent = pickle.dumps(law)
    assert len(sent) < 4 * len(WINDOWS) * 384 + 2000  # what is computed from it stays behind
    assert np.array_equal(mixtures(pickle.loads(sent), 5), before)


def test_its_digest_names_centroids_and_scales():
    law = Neighbourhood(centroids())
    other = centroids()
    other[0, 0] += 0.01
    assert Neighbourhood(centroids()).description == law.description
    assert Neighbourhood(other).description != law.description
    assert Neighbourhood(centroids(), [0.1]).description != law.description


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Neighbourhood(centroids(), []), "scales is empty"),
        (lambda: Neighbourhood(centroids(), [0.1, 0.0]), "a scale is 0.0; it must be between"),
        (lambda: Neighbourhood(centroids(), [float("nan")]), "a scale is nan"),
        (lambda: Neighbourhood(centroids() * 4000), "a centroid is longer than 2896"),
        (lambda: mixtures(Neighbourhood(centroids()[:3]), 1), "3 centroids for 6 domains"),
        (
            lambda: mixtures(Neighbourhood(np.where(np.arange(6)[:, None] == 3, np.nan, centroids())), 1),
            "domain 3 holds text and has no centroid",
        ),
    ],
)
def test_impossible_neighbourhoods_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
