"""Whether what is drawn follows its mixtures."""

import numpy as np
import pytest

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.mixtures.tally import MixtureTally


def plan(batch_size=8, mixtures=2):
    return MixturePlan(
        np.array([40, 0, 30, 90]),
        Sparse(support_size=2),
        seed=3,
        batch_size=batch_size,
        mixtures_per_step=mixtures,
    )


def test_it_counts_every_slot_of_every_step():
    tally, of = MixtureTally(plan()), plan().steps(0, 50)
    tally.add(0, 20)
    tally.add(20, 20)
    tally.add(20, 50)
    target = sum(of.domain_weights(step, 4).mean(0) for step in range(50)) / 50
    drawn = np.bincount(of.domain_TB.reshape(-1), minlength=4) / of.domain_TB.size
    assert tally.distance == pytest.approx(0.5 * np.abs(target - drawn).sum())
    assert tally.domains_drawn == np.count_nonzero(drawn) == 3


def test_the_distance_falls_with_the_steps_and_a_wrong_stream_keeps_it():
    tally = MixtureTally(plan())
    assert tally.distance == 0
    tally.add(0, 5000)
    assert tally.distance < 0.01
    tally._drawn_K[:] = np.roll(tally._drawn_K, 1)
    assert tally.distance > 0.1
