"""The plan's draws follow their laws, at 4096 domains of very unequal sizes: some empty, some of one window.

Every test has fixed seeds, so it passes always or never. A wrong law gives a chance far below the bound.
"""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammainc
from scipy.stats import binom, chi2, chi2_contingency, hypergeom, ks_2samp, norm

from pipeline.mixtures.meta_distributions import Fixed, Given, Sparse, window_shares
from pipeline.mixtures.plan import WIDE, MixturePlan

K, S = 4096, 4
LIKELY = 1e-3
B_OF_MIXTURE = 256
ENOUGH = 5
"""Expected draws of a cell, from which on the statistic is chi-square."""


def unequal_windows():
    """A seventh of the domains is empty, a seventh has one window, a seventh 2 to 9, the others up to some 100,000."""
    random = np.random.Generator(np.random.PCG64(0))
    windows_K = random.lognormal(6, 2, K).astype(np.int64) + 10
    windows_K[::7], windows_K[1::7] = 0, 1
    windows_K[2::7] = random.integers(2, 10, len(windows_K[2::7]))
    return windows_K


WINDOWS = unequal_windows()
THERE = np.flatnonzero(WINDOWS)


@pytest.fixture(scope="module")
def mixtures():
    """40,000 mixtures of the paper's law, two a step."""
    return MixturePlan(WINDOWS, Sparse(support_size=S), seed=17, batch_size=2, mixtures_per_step=2).steps(
        0, 20_000
    )


class Slots:
    """A million slots, by mixture: which place of its support each took, and which window."""

    def __init__(self, law, steps=2000):
        plan = MixturePlan(WINDOWS, law, seed=23, batch_size=2 * B_OF_MIXTURE, mixtures_per_step=2)
        drawn = plan.steps(0, steps)
        self.support_Ms = drawn.support_TWs.reshape(2 * steps, -1)
        self.weights_Ms = drawn.weights_TWs.reshape(2 * steps, -1)
        self.domain_Mb = drawn.domain_TB.reshape(2 * steps, -1)
        self.row_Mb = drawn.row_TB.reshape(2 * steps, -1)
        here_Mbs = (self.domain_Mb[..., None] == self.support_Ms[:, None]) & (self.weights_Ms > 0)[:, None]
        assert (here_Mbs.sum(-1) == 1).all()  # of its own mixture's domains, one that has a weight
        self.place_Mb = here_Mbs.argmax(-1)
        self.found_Ms = here_Mbs.sum(1)
        self.expected_Ms = B_OF_MIXTURE * self.weights_Ms


@pytest.fixture(scope="module")
def slots():
    return Slots(Sparse(support_size=S))


def check_counts(found, expected, *, groups=1):
    """Chi-square of counts, whose sum is given in each group; neither too far from the expected ones nor too near."""
    assert expected.min() > ENOUGH
    statistic = ((found - expected) ** 2 / expected).sum()
    chance = chi2.sf(statistic, found.size - groups)
    assert LIKELY < chance < 1 - LIKELY, f"{statistic:.6g} with {found.size - groups} degrees"


def check_sum(found, mean, variance):
    assert abs(found - mean) < norm.isf(LIKELY / 2) * np.sqrt(variance), f"{found}, expected {mean:.6g}"


def test_the_sizes_are_as_unequal_as_the_docstring_says():
    assert (WINDOWS == 0).sum() == (WINDOWS == 1).sum() + 1 == 586
    assert len(THERE) == 3510 and WINDOWS.max() > 100_000


def test_supports_are_uniform_over_the_domains_that_are_not_empty(mixtures):
    assert (np.diff(mixtures.support_TWs) > 0).all() and (mixtures.weights_TWs > 0).all()
    counts_K = np.bincount(mixtures.support_TWs.ravel(), minlength=K)
    assert not counts_K[WINDOWS == 0].any()
    check_counts(counts_K[THERE], np.full(len(THERE), mixtures.support_TWs.size / len(THERE)))
    alike = binom(len(mixtures.support_TWs) * 2, S / len(THERE))  # no single domain stands out either
    assert len(THERE) * alike.cdf(counts_K[THERE].min()) > LIKELY
    assert len(THERE) * alike.sf(counts_K[THERE].max() - 1) > LIKELY


@pytest.mark.parametrize("half", ["the first half", "every other one"])
def test_the_domains_of_a_mixture_do_not_depend_on_each_other(mixtures, half):
    """So many of four distinct ones lie in a half of the domains, as when drawn from an urn."""
    rank = np.searchsorted(THERE, mixtures.support_TWs)
    inside = rank < len(THERE) // 2 if half == "the first half" else rank % 2 == 0
    found = np.bincount(inside.sum(-1).ravel(), minlength=S + 1)
    urn = hypergeom(len(THERE), len(THERE) // 2, S)
    check_counts(found, found.sum() * urn.pmf(np.arange(S + 1)))


def test_mixtures_do_not_depend_on_each_other(mixtures):
    """Of a step, or of steps one after the other: domains in common are as rare as by chance."""
    support_Ms = mixtures.support_TWs.reshape(-1, S)
    for apart in 1, 2:
        common = (support_Ms[apart:, :, None] == support_Ms[:-apart, None]).sum()
        expected = (len(support_Ms) - apart) * S * S / len(THERE)
        check_sum(common, expected, expected)


@pytest.mark.parametrize("by", ["place", "largest", "smallest", "of one window"])
def test_weights_are_uniform_numbers_divided_by_their_sum(mixtures, by):
    """Drawn again by another generator of NumPy's; those of the smallest domains like all others."""
    weights_Ms = mixtures.weights_TWs.reshape(-1, S)
    np.testing.assert_allclose(weights_Ms.sum(1), 1, atol=1e-12)
    uniform_Ms = np.random.Generator(np.random.MT19937(1)).random((len(weights_Ms), S))
    expected_Ms = uniform_Ms / uniform_Ms.sum(1, keepdims=True)
    match by:
        case "place":
            pairs = list(zip(weights_Ms.T, expected_Ms.T, strict=True))
        case "largest":
            pairs = [(weights_Ms.max(1), expected_Ms.max(1))]
        case "smallest":
            pairs = [(weights_Ms.min(1), expected_Ms.min(1))]
        case _:
            small = WINDOWS[mixtures.support_TWs.reshape(-1, S)] == 1
            pairs = [(weights_Ms[small], expected_Ms[:, 0])]
    for found, expected in pairs:
        assert ks_2samp(found, expected).pvalue > LIKELY


def test_weights_do_not_depend_on_the_domains_that_they_are_of(mixtures):
    """As they would if both came from the same uniform numbers."""
    weights_Ms = mixtures.weights_TWs.reshape(-1, S)
    rank_Ms = np.searchsorted(THERE, mixtures.support_TWs.reshape(-1, S))
    for ranks in rank_Ms.max(1) / (rank_Ms.sum(1) + 1), rank_Ms.sum(1), WINDOWS[THERE[rank_Ms]].argmax(1):
        correlations = np.corrcoef(ranks, np.vstack([weights_Ms.max(1), weights_Ms.T]))[0, 1:]
        check_sum(np.abs(correlations).max(), 0, 1 / len(weights_Ms))


def test_weights_have_the_mean_and_variance_of_their_law(mixtures):
    """The variance by an integral: E[(u/sum)^2] = ∫ t E[u^2 exp(-tu)] E[exp(-tu)]^3 dt, with u uniform."""
    square, _ = quad(lambda t: t * (2 * gammainc(3, t) / t**3) * (-np.expm1(-t) / t) ** 3, 0, np.inf)
    variance = square - 1 / 16
    for weights in mixtures.weights_TWs.reshape(-1, S).T:
        deviations = (weights - 1 / 4) ** 2
        check_sum(weights.mean(), 1 / 4, variance / len(weights))
        check_sum(deviations.mean(), variance, deviations.var() / len(weights))


def test_supports_by_size_are_as_drawn_one_after_the_other():
    """Drawn again by another generator of NumPy's: by size with replacement, the first four distinct ones."""
    law = Sparse(support_size=S, by_size=True)
    found = MixturePlan(WINDOWS, law, seed=2, batch_size=1).steps(0, 40_000).support_TWs
    draws = np.random.Generator(np.random.MT19937(2)).choice(K, (10_000, 20), p=window_shares(WINDOWS))
    again = np.array([list(dict.fromkeys(row))[:S] for row in draws.tolist()])
    ascending = np.argsort(WINDOWS, kind="stable")
    before = np.cumsum(WINDOWS[ascending]) - WINDOWS[ascending]
    fortieth_K = np.empty(K, int)  # of all windows: many small domains, or a few large ones
    fortieth_K[ascending] = 40 * before // WINDOWS.sum()
    table = np.stack([np.bincount(fortieth_K[drawn].ravel(), minlength=40) for drawn in (found, again)])
    assert (WINDOWS[found] > 0).all() and (table > 100).sum() > 60
    assert chi2_contingency(table[:, table.any(0)]).pvalue > LIKELY


def test_supports_by_size_are_drawn_one_after_the_other():
    """The chance of a pair: a by its size, then b by its size among the rest, or the other way round."""
    sizes = np.array([5, 0, 3, 2])
    by_size = MixturePlan(sizes, Sparse(support_size=2, by_size=True), seed=2, batch_size=1)
    pairs = by_size.steps(0, 20_000).support_TWs.reshape(-1, 2)
    for a, b in [(0, 2), (0, 3), (2, 3)]:
        p, q = sizes[a] / 10, sizes[b] / 10
        expected = 20_000 * (p * q / (1 - p) + q * p / (1 - q))
        assert abs((pairs == [a, b]).all(1).sum() - expected) < 4 * np.sqrt(expected)


def test_slots_follow_the_weights_of_their_mixture(slots):
    """Chi-square of each mixture by itself, added up; domains of less weight than it allows, all together."""
    often = (slots.expected_Ms > ENOUGH).all(1)
    assert often.sum() > 3000
    check_counts(slots.found_Ms[often], slots.expected_Ms[often], groups=often.sum())
    for most in ENOUGH, 1:
        rare = slots.expected_Ms <= most
        expected = slots.expected_Ms[rare].sum()
        check_sum(slots.found_Ms[rare].sum(), expected, expected)


def test_domains_of_one_window_are_drawn_with_replacement_and_as_often_as_their_weights_say(slots):
    single = WINDOWS[slots.support_Ms] == 1
    found, expected = slots.found_Ms[single], slots.expected_Ms[single]
    check_sum(found.sum(), expected.sum(), (expected * (1 - expected / B_OF_MIXTURE)).sum())
    assert (found > 1).mean() > 0.9 and not slots.row_Mb[WINDOWS[slots.domain_Mb] == 1].any()


@pytest.mark.parametrize(("least", "most"), [(50, 1000), (1000, 10**9)])
def test_rows_are_uniform_within_large_domains(slots, least, most):
    """In fiftieths of the domain, whatever its place in its mixture; and the first and the last row by themselves."""
    windows_Mb = WINDOWS[slots.domain_Mb]
    here = (windows_Mb >= least) & (windows_Mb < most)
    windows, rows, place = windows_Mb[here], slots.row_Mb[here], slots.place_Mb[here]
    found = np.bincount(place * 50 + rows * 50 // windows, minlength=50 * S)
    sizes, number = np.unique(windows, return_inverse=True)
    begins = -(-np.arange(51) * sizes[:, None] // 50)  # of the fiftieths, in rows
    slots_of = np.bincount(place * len(sizes) + number, minlength=S * len(sizes)).reshape(S, -1)
    check_counts(found, (slots_of @ (np.diff(begins) / sizes[:, None])).ravel(), groups=S)
    for end in (rows == 0), (rows == windows - 1):
        check_sum(end.sum(), (1 / windows).sum(), (1 / windows).sum())


@pytest.mark.parametrize("windows", range(2, 10))
def test_rows_of_small_domains_are_uniform_and_with_replacement(slots, windows):
    """Each row as often as the others; the same one twice running as often as by chance."""
    here = WINDOWS[slots.domain_Mb] == windows
    found = np.bincount(slots.row_Mb[here], minlength=windows)
    check_counts(found, np.full(windows, here.sum() / windows))
    again = here[:, 1:] & (slots.domain_Mb[:, 1:] == slots.domain_Mb[:, :-1])
    same = slots.row_Mb[:, 1:][again] == slots.row_Mb[:, :-1][again]
    check_sum(same.sum(), len(same) / windows, len(same) / windows * (1 - 1 / windows))


def some_given(number):
    """Six domains, of which every other one has no weight."""
    weights = np.array([0.5, 0, 0.125, 0, 0.375, 0])
    return THERE[(number * 37 + np.arange(6) * 101) % len(THERE)], weights


def test_domains_of_a_given_mixture_without_weight_are_never_drawn():
    given = Slots(Given(some_given, name="every other"), steps=500)
    for number in 0, 321, 999:
        support, weights = some_given(number)
        assert given.support_Ms[number].tolist() == sorted(support[weights > 0])
    check_counts(given.found_Ms, given.expected_Ms, groups=len(given.found_Ms))


def test_wide_mixtures_are_drawn_by_their_weights_and_never_where_they_have_none():
    """More domains than WIDE, found by bisection; every other one without weight although it has windows."""
    weights_K = np.random.Generator(np.random.PCG64(3)).random(K) * (WINDOWS > 0) * (np.arange(K) % 2)
    weights_K /= weights_K.sum()
    used = weights_K > 0
    assert used.sum() > WIDE and (WINDOWS[~used] > 0).sum() > 1700
    wide = MixturePlan(WINDOWS, Fixed(weights_K), seed=3, batch_size=4096).steps(0, 100)
    found = np.bincount(wide.domain_TB.ravel(), minlength=K)
    assert not found[~used].any()
    expected = weights_K * found.sum()
    often = expected > ENOUGH
    check_counts(
        np.append(found[often], found[~often].sum()), np.append(expected[often], expected[~often].sum())
    )
