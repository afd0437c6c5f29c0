"""Laws mixed with the generic mixture, and one of several laws for each mixture."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from pipeline.mixtures.compositions import Mixed, WithGeneric
from pipeline.mixtures.meta_distributions import Fixed, Given, Sparse, window_shares
from pipeline.mixtures.plan import MixturePlan

WINDOWS = np.array([5, 0, 1, 30, 8, 12])
GENERIC = window_shares(WINDOWS)
ALONE = Fixed(np.eye(6)[2])
"""A mixture of one domain, whose weight says the share of the law."""
LIKELY = 1e-3


def weights(law, steps, **settings):
    """Dense weights [steps * W, K]."""
    plan = MixturePlan(WINDOWS, law, **{"seed": 3, "batch_size": 2} | settings)
    made = plan.steps(0, steps)
    return np.concatenate([made.domain_weights(step, 6) for step in range(steps)])


@pytest.mark.parametrize(("share", "cdf"), [("uniform", lambda own: own), ("triangular", lambda own: own**2)])
def test_the_law_s_own_share_is_drawn_from_its_law(share, cdf):
    found = weights(WithGeneric(law=ALONE, share=share), 5000, mixtures_per_step=2)
    own_M = (found[:, 2] - GENERIC[2]) / (1 - GENERIC[2])
    np.testing.assert_allclose(
        found, own_M[:, None] * np.eye(6)[2] + (1 - own_M[:, None]) * GENERIC, atol=1e-12
    )
    assert kstest(own_M, cdf).pvalue > LIKELY


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_may_be_a_number(share):
    """The rest is the law's own draw, of the same uniform numbers but one."""
    sparse = Sparse(support_size=3)
    plan = MixturePlan(WINDOWS, sparse, seed=3, batch_size=2)
    uniform_TWu = np.random.Generator(np.random.PCG64(0)).random((50, 1, 7))
    number_TW = np.arange(50)[:, None]
    support, own = sparse.draw(plan.domains, number_TW, uniform_TWu[..., 1:])
    law = WithGeneric(law=sparse, share=share)
    there, found = law.draw(plan.domains, number_TW, uniform_TWu)
    for t in range(50):
        expected = (1 - share) * np.bincount(support[t, 0], own[t, 0], 6) + share * GENERIC
        np.testing.assert_allclose(np.bincount(there[t, 0], found[t, 0], 6), expected, atol=1e-12)


def test_padding_takes_no_weight_from_a_domain():
    """A mixture of fewer domains repeats its last one, at weight zero."""
    given = Given(lambda number: ([4], [1.0]) if number % 2 else ([0, 3, 4], [0.25, 0.5, 0.25]), name="x")
    found = weights(WithGeneric(law=given, share=0.5), 2)
    expected = np.array([[0.25, 0, 0, 0.5, 0.25, 0], [0, 0, 0, 0, 1, 0]])
    np.testing.assert_allclose(found, (expected + GENERIC) / 2, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_law_of_all_domains_is_left_as_it_is(steps):
    """Its weights may be one array for all mixtures, which nobody may write to."""
    uneven = np.array([0.5, 0, 0.1, 0.1, 0.1, 0.2])
    for law in Fixed(uneven), Mixed(((1.0, Fixed(uneven)),)):
        found = weights(WithGeneric(law=law, share=0.5), steps)
        np.testing.assert_allclose(found, [(uneven + GENERIC) / 2] * steps, atol=1e-12)


def test_each_mixture_picks_its_law_by_its_share():
    laws = [Fixed(np.eye(6)[k]) for k in (0, 3, 5)]
    law = Mixed(tuple(zip([1, 2, 5], laws, strict=True)))
    found = weights(law, 4000, mixtures_per_step=2)
    counts = found.sum(0)[[0, 3, 5]]
    assert counts.sum() == 8000
    for count, share in zip(counts, [1 / 8, 2 / 8, 5 / 8], strict=True):
        chance = binom(8000, share)
        assert LIKELY < chance.cdf(count) < 1 - LIKELY
    one, other = found[::2].argmax(1), found[1::2].argmax(1)  # of a step: they do not depend on each other
    assert abs(np.corrcoef(one == 5, other == 5)[0, 1]) < 0.05


def test_each_law_s_mixtures_are_as_it_draws_them_alone():
    """Whatever law the mixtures beside them came from: a table by their number, the others by their uniform numbers."""
    given = Given(lambda number: ([0, 3], [(number % 7) / 8, 1 - (number % 7) / 8]), name="x")
    sparse = Sparse(support_size=1)
    found = weights(
        Mixed(((0.5, given), (0.5, WithGeneric(law=sparse, share=0.5)))), 300, mixtures_per_step=2
    )
    of_given = (found[:, [2, 4, 5]] == 0).all(1)
    assert 200 < of_given.sum() < 400
    numbers = np.flatnonzero(of_given)
    np.testing.assert_allclose(found[numbers, 0], (numbers % 7) / 8, atol=1e-12)
    largest = (found[~of_given] - GENERIC / 2).max(1)
    np.testing.assert_allclose(largest, 0.5, atol=1e-12)


def test_where_a_law_has_all_domains_their_numbers_are_held_once():
    plan = MixturePlan(
        WINDOWS, Mixed(((1, WithGeneric(law=ALONE, share=0.5)), (1, ALONE))), seed=0, batch_size=2
    )
    steps = plan.steps(0, 40)
    assert steps.support_TWs.strides[:2] == (0, 0) and (steps.support_TWs == np.flatnonzero(WINDOWS)).all()
    assert set((steps.weights_TWs > 0).sum(-1).ravel()) == {1, 5}
    assert not steps.constant


def test_mixtures_of_fewer_domains_are_padded():
    plan = MixturePlan(
        WINDOWS, Mixed(((1, Sparse(support_size=1)), (1, Sparse(support_size=3)))), seed=0, batch_size=2
    )
    steps = plan.steps(0, 40)
    assert steps.support_TWs.shape == (40, 1, 3) and (np.diff(steps.support_TWs) >= 0).all()
    assert set((steps.weights_TWs > 0).sum(-1).ravel()) == {1, 3}
    np.testing.assert_allclose(steps.weights_TWs.sum(-1), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: WithGeneric(law=ALONE, share=1.5), "the generic share is 1.5"),
        (lambda: WithGeneric(law=ALONE, share=float("nan")), "the generic share is nan"),
        (lambda: WithGeneric(law=ALONE, share="half"), "the generic share is 'half'"),
        (lambda: weights(WithGeneric(law=Sparse(support_size=9), share=0.5), 1), "support_size is 9"),
        (lambda: Mixed(()), "there are no laws to mix"),
        (lambda: Mixed(((0.0, ALONE),)), "the share of the law fixed is 0.0"),
        (lambda: Mixed(((float("inf"), ALONE),)), "the share of the law fixed is inf"),
        (lambda: Mixed(((1e308, ALONE), (1e308, ALONE))), "shares of the laws sum to inf.*Give smaller ones"),
        (lambda: weights(Mixed(((1.0, ALONE), (1.0, Sparse(support_size=9)))), 1), "support_size is 9"),
    ],
)
def test_impossible_compositions_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
