"""Each optimizer of the experts against a slow one of its own, and the traps of few bits.

Legend: W mixtures, N experts, p columns.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soe_model.optimizers import MOMENTS, OPTIMIZERS, AdamConfig, bytes_of, compact, rounding
from soe_model.optimizers.compact import CompactExperts
from soe_model.optimizers.tile import FACTORED

W, N, P = 3, 5, 2 * FACTORED
CONFIG = AdamConfig()


def make(name, *, shape=(N, P), std=0.02, config=CONFIG, first_column=0, device="cpu"):
    def fill(tile_Nt, start):
        columns_t = torch.arange(start, start + tile_Nt.shape[1])
        tile_Nt.copy_(std * rounding.normal(rounding.row_keys(len(tile_Nt), 0, 0), columns_t))

    return OPTIMIZERS[name](
        shape, config=config, seed=7, fill=fill, first_column=first_column, device=torch.device(device)
    )


def gradients(step, *, columns=P, scale=1e-3, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    spread = torch.logspace(-2, 2, columns)  # columns of very different size, as embeddings have
    return (
        torch.randn(W, N, generator=generator).to(device),
        (scale * torch.randn(W, columns, generator=generator) * spread).to(device),
    )


def rows(experts):
    return torch.stack([experts.row(j) for j in range(N)])


class Slow:
    """Adam, or what a variant makes of it, with whole gradients and float64; rounding is left to the bits given."""

    def __init__(self, experts, config=CONFIG):
        self.weights = rows(experts).double()
        self.first = torch.zeros_like(self.weights)
        self.second = torch.zeros_like(self.weights)
        self.of_rows = torch.zeros(len(self.weights), self.weights.shape[1] // FACTORED).double()
        self.of_columns = torch.zeros(self.weights.shape[1]).double()
        self.config = config

    def update(self, coefficients, grads, *, step, learning_rate, factored):
        beta1, beta2, epsilon = self.config.beta1, self.config.beta2, self.config.epsilon
        gradient = coefficients.double().T @ grads.double()
        self.first = beta1 * self.first + (1 - beta1) * gradient
        if factored:
            squares = gradient.square()
            self.of_rows = beta2 * self.of_rows + (1 - beta2) * squares.unflatten(1, (-1, FACTORED)).sum(2)
            self.of_columns = beta2 * self.of_columns + (1 - beta2) * squares.sum(0)
            blocks = self.of_columns.view(-1, FACTORED)
            self.second = (self.of_rows[..., None] * blocks / blocks.sum(1, keepdim=True)).flatten(1)
        else:
            self.second = beta2 * self.second + (1 - beta2) * gradient.square()
        corrected = self.first / (1 - beta1 ** (step + 1))
        root = (self.second / (1 - beta2 ** (step + 1))).sqrt()
        self.weights -= learning_rate * corrected / (root + epsilon)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_equals_its_slow_one(name):
    """Adam to float32's rounding; the others to what 8 bits of a mantissa (or of a block) leave of a moment."""
    experts = make(name)
    slow = Slow(experts)
    start = slow.weights.clone()
    for step in range(10):
        batch = gradients(step)
        experts.update(*batch, step=step, learning_rate=1e-3)
        slow.update(*batch, step=step, learning_rate=1e-3, factored=name.startswith("factored"))
    moved = (slow.weights - start).norm()
    error = (rows(experts) - slow.weights).norm() / moved
    bound = {"adam": 1e-5, "adam-bf16-moments": 0.01, "factored": 0.01, "factored-int8": 0.2}[name]
    assert error < bound


@pytest.mark.parametrize("name", MOMENTS)
def test_a_compact_update_is_exact_but_for_the_rounding_of_its_moments(name):
    """The first update starts from moments of zero: nothing was rounded yet, and the weights are those of float32."""
    experts, moments = make(name), MOMENTS[name]
    slow = Slow(experts)
    start, batch = slow.weights.clone(), gradients(0)
    experts.update(*batch, step=0, learning_rate=1e-3)
    slow.update(*batch, step=0, learning_rate=1e-3, factored=moments.factored_second)
    # As a whole: single elements whose gradient is next to nothing are divided by its size, and differ between CPUs.
    assert (rows(experts) - slow.weights).norm() < 1e-5 * (slow.weights - start).norm()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_combine_and_the_coefficients_gradient_are_of_one_and_the_same_model(name):
    experts = make(name)
    held = rows(experts).bfloat16().float() if name in MOMENTS else rows(experts)
    coefficients_WN, grads_Wp = gradients(0)
    shared_p, out_Wp = torch.randn(P), torch.empty(W, P)
    experts.combine(shared_p, coefficients_WN, out_Wp)
    torch.testing.assert_close(out_Wp, shared_p + coefficients_WN @ held, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        experts.coefficient_gradients(grads_Wp), grads_Wp @ held.T, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_columns_of_another_rank_move_as_they_would_in_one_piece(name):
    """Rounding is keyed by the global column: half a bank, updated alone, is half of the whole one."""
    whole, half = make(name), make(name, shape=(N, FACTORED), first_column=FACTORED)
    assert torch.equal(rows(half), rows(whole)[:, FACTORED:])
    for step in range(3):
        coefficients_WN, grads_Wp = gradients(step)
        whole.update(coefficients_WN, grads_Wp.clone(), step=step, learning_rate=1e-3)
        half.update(coefficients_WN, grads_Wp[:, FACTORED:].clone(), step=step, learning_rate=1e-3)
    if name == "adam":
        assert torch.equal(rows(half), rows(whole)[:, FACTORED:])
    else:  # sums over mixtures may be added up in another order
        torch.testing.assert_close(rows(half), rows(whole)[:, FACTORED:], rtol=1e-4, atol=1e-5)


def test_columns_beyond_two_to_the_31_have_bits_of_their_own():
    """A bank of 14 billion elements; an index that wrapped round would repeat the first columns' bits."""
    keys = rounding.row_keys(2, 0, 1)
    near, far = torch.arange(1000), torch.arange(1000) + (1 << 32)
    bits = rounding.random_bits(keys, near)
    assert not torch.equal(bits, rounding.random_bits(keys, far))
    assert not torch.equal(bits, rounding.random_bits(keys, near + (1 << 31)))
    experts = make("adam-bf16-moments", shape=(N, FACTORED), first_column=3 << 31)
    experts.update(*gradients(0, columns=FACTORED), step=0, learning_rate=1e-3)
    assert rows(experts).isfinite().all()


def test_random_bits_are_uniform_and_differ_by_seed_step_row_and_column():
    bits = rounding.random_bits(rounding.row_keys(64, 3, 9), torch.arange(4096))
    for shift in (0, 16):
        share = ((bits >> shift) & rounding.HALF).double() / 65536
        assert abs(share.mean() - 0.5) < 0.003 and abs(share.var() - 1 / 12) < 0.001
    correlation = torch.corrcoef(bits.double())
    assert (correlation - torch.eye(64)).abs().max() < 0.1
    assert torch.corrcoef(bits[:, :256].T.double()).fill_diagonal_(0).abs().mean() < 0.15
    others = [rounding.row_keys(64, seed, step) for seed, step in ((3, 10), (4, 9), (3 + (1 << 32), 9))]
    for keys in others:
        again = rounding.random_bits(keys, torch.arange(4096))
        assert (again == bits).double().mean() < 1e-4


def test_splitting_a_weight_loses_nothing():
    values = torch.cat(
        [torch.randn(100_000) * 10.0 ** torch.randint(-30, 30, (100_000,)), torch.tensor([0.0, -0.0])]
    )
    high, low = rounding.split(values)
    assert torch.equal(rounding.joined(high, low).view(torch.int32), values.view(torch.int32))
    assert ((high.float() - values).abs() <= 2**-8 * values.abs()).all()


def test_a_second_moment_of_few_bits_is_not_frozen():
    """An average of squares that starts at 1, the true value being 0.25: to nearest it would stay at 1."""
    keys, columns = rounding.row_keys(8, 0, 0), torch.arange(4096)
    stochastic = nearest = torch.ones(8, 4096, dtype=torch.bfloat16)
    exact = torch.ones(8, 4096)
    for step in range(2000):
        bits = rounding.random_bits(rounding.mixed(keys ^ step), columns)
        exact = exact + 0.001 * (0.25 - exact)
        stochastic = rounding.to_bfloat16(
            stochastic.float() + 0.001 * (0.25 - stochastic.float()), bits & 0xFFFF
        )
        nearest = (nearest.float() + 0.001 * (0.25 - nearest.float())).bfloat16()
    assert nearest.float().mean() == 1.0
    assert abs(stochastic.float().mean() - exact.mean()) < 0.002


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_move_at_a_rate_far_below_their_last_bfloat16_bit(name):
    experts = make(name, std=1.0)
    before = rows(experts)
    for step in range(20):
        coefficients_WN, grads_Wp = gradients(0)
        experts.update(coefficients_WN, grads_Wp, step=step, learning_rate=1e-5)
    moved = (rows(experts) - before).abs()
    assert moved.mean() > 1e-4  # 20 updates of about 1e-5, all in one direction


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_epsilon_is_not_negligible_for_small_gradients(name):
    """A gradient of 1e-9 (clipped, a coefficient near zero) moves a weight by a tenth of the rate, not by all of it."""
    experts = make(name, std=0.0)
    coefficients_WN, grads_Wp = torch.ones(1, N), torch.full((1, P), 1e-9)
    experts.update(coefficients_WN, grads_Wp, step=0, learning_rate=1.0)
    torch.testing.assert_close(rows(experts), torch.full((N, P), -1e-9 / (1e-9 + 1e-8)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_gradient_stays(name):
    experts = make(name)
    before = rows(experts)
    experts.update(torch.randn(1, N), torch.zeros(1, P), step=0, learning_rate=1.0)
    assert torch.equal(rows(experts), before)


def test_bytes_are_those_that_the_tensors_take():
    for name in OPTIMIZERS:
        experts = make(name)
        held = sum(
            t.numel() * t.element_size() for key, t in experts.tensors().items() if key != "second_columns"
        )
        assert held / (N * P) == pytest.approx(bytes_of(name)[0])
    with pytest.raises(ValueError, match="no optimizer 'sgd'; there are adam, "):
        bytes_of("sgd")


def test_a_shard_that_cuts_a_block_is_refused():
    with pytest.raises(ValueError, match="multiples of 1024"):
        CompactExperts((2, 1000), moments=MOMENTS["factored"], config=CONFIG, seed=0)


def test_factors_take_no_tensors_as_large_as_the_gradients(monkeypatch):
    """What is planned for a worker has no room for them."""
    monkeypatch.setattr(compact, "GRAM_COLUMNS", FACTORED)
    experts = make("factored", shape=(N, 8 * FACTORED))
    coefficients_WN, grads_Wp = gradients(0, columns=8 * FACTORED)
    made = []

    class Notes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != grads_Wp.data_ptr():
                made.append(out.untyped_storage().nbytes() // 4)
            return out

    with Notes():
        experts._factors(coefficients_WN, grads_Wp, 0.1)
    assert made and max(made) < grads_Wp.numel()
