"""The plan: pure, random-access, world-size-free arithmetic with a known distribution."""

import hashlib

import numpy as np
import pytest

from pipeline.mixtures import MixturePlan, generic_weights

K = 4096
GOLDEN_SUPPORT = [[[3, 4], [3, 4]], [[2, 4], [2, 4]]]
GOLDEN_DOMAIN = [[3, 4, 3, 3], [2, 4, 4, 4]]
GOLDEN_ROW = [[1, 3, 1, 1], [4, 6, 4, 1]]
GOLDEN_DIGEST = "2eec4802db74ed35362da09473ab26504c8095f2870797d383a2757c3288af88"


def windows(seed=0):
    sizes = np.random.Generator(np.random.PCG64(seed)).integers(1, 1000, K)
    sizes[::7] = 0
    return sizes


def plan(**settings):
    defaults = dict(seed=5, batch_size=32, mixtures_per_step=4, support_size=4)
    return MixturePlan(windows(), **defaults | settings)


def test_golden_vectors():
    """Frozen: a change of NumPy or of the arithmetic would silently give a resumed run other data."""
    small = MixturePlan(
        np.array([3, 0, 5, 2, 9]), seed=11, batch_size=4, mixtures_per_step=2, support_size=2
    ).steps(7, 9)
    assert small.support_TWs.tolist() == GOLDEN_SUPPORT
    assert small.domain_TB.tolist() == GOLDEN_DOMAIN
    assert small.row_TB.tolist() == GOLDEN_ROW
    large = plan().steps(10**6, 10**6 + 3)
    digest = hashlib.sha256()
    for array in (large.support_TWs, large.weights_TWs, large.domain_TB, large.row_TB):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == GOLDEN_DIGEST


def test_a_window_of_steps_is_the_same_as_each_step_alone():
    whole = plan().steps(90, 154)
    for step in (90, 101, 153):
        one = plan().steps(step, step + 1)
        assert np.array_equal(one.domain_TB[0], whole.domain_TB[step - 90])
        assert np.array_equal(one.row_TB[0], whole.row_TB[step - 90])
        assert np.array_equal(one.domain_weights(step, K), whole.domain_weights(step, K))


def test_support_is_exact_distinct_and_never_empty():
    steps = plan(support_size=16).steps(0, 200)
    assert (np.diff(steps.support_TWs, axis=-1) > 0).all()
    assert (windows()[steps.support_TWs] > 0).all()
    assert ((steps.domain_weights(3, K) > 0).sum(1) == 16).all()
    np.testing.assert_allclose(steps.weights_TWs.sum(-1), 1, atol=1e-12)


def test_slots_follow_their_mixture():
    """Domains by the weights (chi-square), only from the slot's own mixture; rows uniform."""
    many = MixturePlan(np.array([50] * 8), seed=1, batch_size=20_000, mixtures_per_step=2, support_size=3)
    steps = many.steps(0, 1)
    for w in range(2):
        slots = steps.domain_TB[0][many.mixture_of_slot() == w]
        found = np.array([(slots == d).sum() for d in steps.support_TWs[0, w]])
        assert found.sum() == len(slots) == 10_000
        expected = steps.weights_TWs[0, w] * len(slots)
        assert ((found - expected) ** 2 / expected).sum() < 13.8  # 99.9% of chi-square with 2 degrees
    rows = np.bincount(steps.row_TB[0], minlength=50)
    assert ((rows - 400) ** 2 / 400).sum() < 85.4  # 99.9% with 49 degrees


def test_supports_are_uniform_over_the_domains_that_are_not_empty():
    few = MixturePlan(np.array([1, 0, 1, 1, 1, 1]), seed=2, batch_size=1, support_size=2)
    counts = np.bincount(few.steps(0, 20_000).support_TWs.ravel(), minlength=6)
    assert counts[1] == 0
    assert ((counts[[0, 2, 3, 4, 5]] - 8000) ** 2 / 8000).sum() < 18.5  # 99.9% with 4 degrees


def test_generic_mixture_draws_windows_equally():
    sizes = np.array([10, 0, 30, 60])
    generic = MixturePlan(sizes, seed=0, batch_size=10_000, fixed_weights_K=generic_weights(sizes))
    steps = generic.steps(4, 5)
    found = np.bincount(steps.domain_TB[0], minlength=4)
    assert found[1] == 0
    expected = np.array([1000, 3000, 6000])
    assert ((found[[0, 2, 3]] - expected) ** 2 / expected).sum() < 13.8
    np.testing.assert_allclose(steps.domain_weights(4, 4), [[0.1, 0, 0.3, 0.6]])


def test_whole_support_is_the_uniform_meta_distribution():
    every = MixturePlan(np.array([4, 4, 0, 4]), seed=0, batch_size=2, support_size=3).steps(0, 5)
    assert (every.support_TWs == [0, 1, 3]).all()


def test_digest_names_the_data():
    assert plan().digest == plan().digest
    for change in (
        {"seed": 6},
        {"batch_size": 64},
        {"support_size": 5},
        {"store_digest": "x"},
        {"sequence_length": 9},
    ):
        assert plan(**change).digest != plan().digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 30}, "batch_size 30 is not a positive multiple of mixtures_per_step 4"),
        ({"support_size": 0}, "support_size is 0"),
        ({"support_size": 4096}, "between 1 and the 3510 domains"),
        ({"support_size": 300}, "at most 256, or all 3510"),
        ({"fixed_weights_K": np.ones(3) / 3}, "3 domain weights for 4096 domains"),
        ({"fixed_weights_K": np.eye(K)[0]}, "domain 0 has weight 1 but no whole window"),
    ],
)
def test_impossible_plans_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(**settings)


def test_a_store_without_a_whole_window_is_refused():
    with pytest.raises(ValueError, match="every domain is empty"):
        MixturePlan(np.zeros(4, int), seed=0, batch_size=1, support_size=1)
