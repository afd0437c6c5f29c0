"""Coefficients learned on texts (section 2.7) beside plain autograd, and fine-tuning with replay (section 3.2)."""

from dataclasses import replace

import pytest
import torch

from soe_model.model.flat_module import unflatten
from soe_model.reference import combine, loss
from soe_model.specialists.coefficient_learning import (
    Learning,
    batches_of,
    coefficients_after,
    learn_coefficients,
    two_sides,
)
from soe_model.specialists.evaluation import bootstrap_interval, mean_loss, normal_interval
from soe_model.specialists.fine_tuning import fine_tune
from tests.soe_model.toy_soup import WEIGHTS
from tests.soe_model.training.test_trainer import make_batch


@pytest.fixture
def windows():
    return torch.cat([make_batch(number)[0] for number in range(3)])


def tuned_of(soup, instance_P, *arguments, **options):
    params_P = instance_P.clone()
    return fine_tune(soup.model(params_P), params_P, *arguments, **options)


def test_learning_is_plain_gradient_descent_on_the_coefficients(soup, windows):
    start = soup.coefficients(WEIGHTS[:1])[0]
    learning = Learning(steps=4, learning_rate=0.05, batch_size=5, check_every=4, patience=9)
    found, learned = learn_coefficients(soup, start, windows, windows[:4], learning)
    shared = torch.tensor(soup.bank.shared.flat_P)
    experts = torch.stack([torch.tensor(expert.flat_P) for expert in soup.bank.experts])
    model = soup.model(shared.clone())
    places = unflatten(
        torch.arange(len(shared)), soup.layout
    )  # the files' order; the reference has the model's
    order = torch.cat([places[name].flatten() for name, _ in model.named_parameters()])
    alpha = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=0.05)
    batches = batches_of(windows, learning)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model, combine(shared, experts, alpha)[order], next(batches)).backward()
        optimizer.step()
    assert learned.steps == learned.best_step == 4 and learned.stopping_losses[1] < learned.stopping_losses[0]
    torch.testing.assert_close(found, alpha.detach(), rtol=1e-4, atol=1e-5)


def test_a_relative_rate_is_per_size_of_the_coefficients(soup, windows):
    start = soup.coefficients(WEIGHTS[:1])[0]
    learning = Learning(steps=3, learning_rate=0.1, relative=True, batch_size=5, check_every=3)
    absolute = replace(learning, relative=False, learning_rate=0.1 * start.square().mean().sqrt().item())
    found, expected = (
        learn_coefficients(soup, start, windows, windows[:4], one)[0] for one in (learning, absolute)
    )
    assert not torch.equal(found, start) and torch.equal(found, expected)


def test_looks_on_the_way_are_those_of_as_many_steps(soup, windows):
    start = soup.coefficients(WEIGHTS[:1])[0]
    learning = Learning(steps=5, learning_rate=0.02, batch_size=5, check_every=5)
    looks_SN = coefficients_after(soup, start, windows, learning, (2, 5))
    found, learned = learn_coefficients(soup, start, windows, windows[:4], learning)
    assert learned.best_step == 5 and torch.equal(looks_SN[1], found)
    [alone_N] = coefficients_after(soup, start, windows, learning, (2,))
    assert torch.equal(looks_SN[0], alone_N) and not torch.equal(alone_N, found)


def test_a_descent_can_be_ended_before_each_step(soup, windows):
    looked = []

    def check():
        looked.append(1)
        if len(looked) == 3:
            raise TimeoutError

    start = soup.coefficients(WEIGHTS[:1])[0]
    with pytest.raises(TimeoutError):
        coefficients_after(soup, start, windows, Learning(batch_size=5), (2, 5), check=check)
    assert len(looked) == 3


def test_learning_stops_early_and_returns_the_best(soup, windows):
    start = soup.coefficients(WEIGHTS[:1])[0]
    wild = Learning(steps=100, learning_rate=30.0, batch_size=4, check_every=1, patience=2)
    found, learned = learn_coefficients(soup, start, windows, windows[-3:], wild)
    assert learned.steps == 2 and learned.best_step == 0 and torch.equal(found, start)
    tuned, learned = tuned_of(soup, soup.instances(start[None])[0], windows, windows[-3:], wild)
    assert learned.steps == 2 and torch.equal(tuned, soup.instances(start[None])[0])


def test_fine_tuning_lowers_the_loss(soup, windows):
    before = soup.instances(soup.coefficients(WEIGHTS[:1]))[0]
    tuned, learned = tuned_of(soup, before, windows, windows, Learning(steps=20, learning_rate=1e-2))
    assert mean_loss(soup.model(tuned), windows) < mean_loss(soup.model(before), windows) - 0.05
    assert min(learned.stopping_losses) == pytest.approx(mean_loss(soup.model(tuned), windows))


def test_replay_has_its_share_of_what_is_trained_on(soup, windows):
    asked = []

    def replay(count):
        asked.append(count)
        return windows[:count]

    instance = soup.instances(soup.coefficients(WEIGHTS[:1]))[0]
    learning = Learning(steps=30, learning_rate=1e-4, batch_size=7, patience=99)
    tuned_of(soup, instance, windows, windows, learning, replay=replay, replay_share=0.1)
    # 30 steps of 7 windows are nine tenths; a rounded-down window is owed at the end.
    assert sum(asked) == int(30 * 7 / 9)
    for share in (-0.1, 1.0, 0.5):
        with pytest.raises(ValueError, match="replay_share is"):
            tuned_of(soup, instance, windows, windows, learning, replay_share=share)


def test_steps_too_large_for_numbers_are_named(soup, windows):
    start = soup.coefficients(WEIGHTS[:1])[0]
    learning = Learning(steps=20, learning_rate=1e30, check_every=5)
    instance = soup.instances(start[None])[0]
    for learn in (
        lambda: learn_coefficients(soup, start, windows, windows, learning),
        lambda: tuned_of(soup, instance, windows, windows, learning),
    ):
        with pytest.raises(ValueError, match=r"learning_rate 1e\+30 is too high: .* Lower it"):
            learn()


def test_too_little_to_learn_from_is_refused(soup, windows):
    start = torch.zeros(4)
    with pytest.raises(ValueError, match="no whole window of tokens to learn from"):
        learn_coefficients(soup, start, windows[:0], windows, Learning())
    with pytest.raises(ValueError, match="no whole window of tokens to evaluate on"):
        learn_coefficients(soup, start, windows, windows[:0], Learning())
    with pytest.raises(ValueError, match="has no experts"):
        learn_coefficients(soup, start[:0], windows, windows, Learning())
    with pytest.raises(ValueError, match="learning_rate is 0"):
        Learning(learning_rate=0)


def test_what_stops_is_of_documents_that_are_not_learned_from():
    """Else a model is trained until it knows the documents, and no others."""
    learn_n, stop_n = two_sides(torch.arange(11), [7] * 6 + [2] * 1 + [9] * 2 + [4] * 2)
    assert stop_n.tolist() == [6, 9, 10] and learn_n.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    learn_n, stop_n = two_sides(torch.arange(10), [*range(10)])
    assert stop_n.tolist() == [0, 1] and len(learn_n) == 8
    learn_n, stop_n = two_sides(torch.arange(11), [0] * 10 + [1])  # one document is left to learn from
    assert stop_n.tolist() == [10] and len(learn_n) == 10


@pytest.mark.parametrize("document_n", [None, [3] * 11])
def test_of_one_document_its_end_stops(document_n):
    learn_n, stop_n = two_sides(torch.arange(11), document_n)
    assert stop_n.tolist() == [9, 10] and learn_n.tolist() == list(range(9))


def test_of_one_window_nothing_is_learned():
    assert [len(side) for side in two_sides(torch.arange(1))] == [0, 1]
    assert [len(side) for side in two_sides(torch.arange(1), [5])] == [0, 1]


def test_an_epoch_has_every_window_once(windows):
    batches = batches_of(torch.arange(10)[:, None], Learning(batch_size=5, seed=3))
    for _ in range(3):
        assert sorted(torch.cat([next(batches), next(batches)]).flatten().tolist()) == list(range(10))


def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_interval(
            torch.randn(40, generator=generator).double(), resamples=300, seed=seed
        )
        inside += low <= 0 <= high
    assert 0.82 < inside / 200 < 0.96  # 0.9 of intervals, four standard errors of 0.02
    assert bootstrap_interval(torch.ones(3).double()) == (1, 1)


def test_an_interval_of_few_resamples_is_right_as_often_as_it_says():
    """16 resamples of the mean of 50 values, 400 times: 90% less what so few resamples cost."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        values_n = torch.randn(50, generator=generator, dtype=torch.float64)
        chosen_bn = torch.randint(50, (16, 50), generator=generator)
        low, high = normal_interval(values_n.mean().item(), values_n[chosen_bn].mean(1))
        covered += low <= 0 <= high
    assert 0.83 < covered / 400 < 0.93
    with pytest.raises(ValueError, match="1 resamples have no standard error"):
        normal_interval(0.0, torch.ones(1))
