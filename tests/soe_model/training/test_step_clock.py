"""Where the time of a step goes."""

import time

import pytest
import torch

from soe_model.training.step_clock import MOST_MARKS, StepClock
from tests.soe_model.training.test_trainer import make_batch, make_trainer


def test_parts_are_summed_over_steps_and_what_lies_between_steps_is_nobodys():
    clock = StepClock(torch.device("cpu"))
    for _ in range(2):
        clock.begin()
        time.sleep(0.02)
        clock.end_of("combine")
        clock.end_of("update")
        time.sleep(0.05)
    seconds = clock.read()
    assert set(seconds) == {"combine", "update"}
    assert 0.04 <= seconds["combine"] < 0.09 and seconds["update"] < 0.01
    assert clock.read() == {}


def test_a_clock_that_nobody_reads_does_not_grow():
    clock = StepClock(torch.device("cpu"))
    for _ in range(MOST_MARKS):
        clock.begin()
        clock.end_of("update")
    assert len(clock._marks) == MOST_MARKS


def test_a_training_step_is_its_parts():
    trainer = make_trainer(batch_size=6)
    trainer.train_step(*make_batch(0, batch_size=6, mixtures=3))
    trainer.clock.read()
    begun = time.perf_counter()
    for number in range(1, 5):
        trainer.train_step(*make_batch(number, batch_size=6, mixtures=3))
    whole = time.perf_counter() - begun
    seconds = trainer.clock.read()
    assert set(seconds) == {"combine", "forward_backward", "update"}
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= whole


@pytest.mark.parametrize("mixtures", [1, 2])
def test_entropy_of_the_experts_shares(mixtures):
    trainer = make_trainer(batch_size=6, mixtures_per_step=mixtures)
    batch = make_batch(0, batch_size=6, mixtures=mixtures)
    sizes = trainer.router.module(batch[2]).detach().abs()
    shares = sizes / sizes.sum(1, keepdim=True)
    expected = -(shares * shares.log()).sum(1).mean()
    assert trainer.train_step(*batch).router_entropy == pytest.approx(expected.item(), rel=1e-5)
