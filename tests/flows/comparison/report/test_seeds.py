"""Whether losses differ by more than the seeds do."""

from __future__ import annotations

import pytest
from scipy.stats import ttest_rel

from flows.comparison.report.seeds import below


def by_seed(*losses):
    return dict(enumerate(losses))


@pytest.mark.parametrize(
    ("first", "second", "holds", "said"),
    [
        ((3.0, 3.1, 3.2), (3.3, 3.41, 3.5), True, "the first lies 0.303 ± 0.010 below the second"),
        ((3.3, 3.41, 3.5), (3.0, 3.1, 3.2), False, "the first lies 0.303 ± 0.010 above the second"),
        (
            (3.0, 3.1, 3.2),
            (3.3, 2.9, 3.3),
            False,
            "the seeds do not tell whether the first lies below the second (-0",
        ),
        (
            (3.0, 3.1),
            (3.1, 3.4),
            False,
            "2 seeds are too few to tell whether the first lies below the second (-0.200",
        ),
        ((3.0,), (4.0,), False, "1 seed is too few to tell whether the first lies below the second (-1.000)"),
        ((), (4.0,), False, "no seed measured the first beside the second"),
        ((float("nan"),), (4.0,), False, "no seed measured"),
    ],
)
def test_in_words(first, second, holds, said):
    claim = below("the first", "the second", by_seed(*first), by_seed(*second))
    assert claim.holds is holds and claim.said.startswith(said)


def test_only_seeds_that_both_have_count():
    assert (
        below("a", "b", {0: 1.0, 1: 1.1, 2: 0.0}, {0: 2.0, 1: 2.1, 3: 9.0}).said
        == "a lies 1.000 ± 0.000 below b"
    )


@pytest.mark.parametrize("third", [3.1, 3.3, 3.5, 3.9])
def test_it_is_sure_where_a_paired_t_test_is(third):
    first, second = (3.0, 3.1, third), (3.3, 3.5, third + 0.25)
    surely = ttest_rel(first, second).pvalue < 0.1
    assert below("a", "b", by_seed(*first), by_seed(*second)).holds == surely
