"""DARE by PEFT's own function, and with equal experts."""

import torch

from tests.soe_model.methods.circles import K, make
from tests.soe_model.methods.test_merging import PLAIN, TARGETS, by_tensor, merged, models_of


def dare(**options):
    return make("merged-dare", **PLAIN, **options)


def test_dare_is_that_of_peft():
    """From the same seed PEFT draws the same, as it goes through the tensors and in each through the experts."""
    one = dare(densities=(0.3,), seed=4)
    from peft.utils.merge_utils import dare_linear  # deptry: ignore[DEP004]

    generic_P, experts_GP = models_of(one)
    found = merged(one, generic_P, experts_GP)
    for model_P, weights_K in zip(found, TARGETS, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            parts = [
                dare_linear(list(deltas_Gp), weights_K, 0.3)
                for deltas_Gp in by_tensor(one, experts_GP - generic_P)
            ]
        torch.testing.assert_close(model_P, generic_P + torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_of_equal_experts_those_that_keep_a_change_carry_it_by_their_weights():
    """Each draws for itself, so they are not equal afterwards: a change δ becomes δ / density Σ w, summed over them."""
    one = dare(densities=(0.4,), seed=2)
    generic_P, experts_GP = models_of(one)
    same = experts_GP[:1].expand(K, -1)
    change_P = same[0] - generic_P
    alone_GP = merged(one, generic_P, same, torch.eye(K)) - generic_P
    kept_GP = (alone_GP != 0).float()
    torch.testing.assert_close(alone_GP, kept_GP * change_P / 0.4, rtol=1e-5, atol=1e-6)
    assert (kept_GP.mean(1) - 0.4).abs().max() < 0.05
    assert ((kept_GP[0] * kept_GP[1]).mean() - 0.4**2).abs() < 0.03  # of two equal draws it would be 0.4
    found = merged(one, generic_P, same) - generic_P
    torch.testing.assert_close(found, TARGETS @ kept_GP * change_P / 0.4, rtol=1e-5, atol=1e-6)


def test_equal_experts_of_which_nothing_is_dropped_are_one_model():
    """A density of 1 is refused; this one is 1 in float32."""
    one = dare(densities=(1 - 1e-9,))
    generic_P, experts_GP = models_of(one)
    same = experts_GP[:1].expand(K, -1)
    torch.testing.assert_close(merged(one, generic_P, same), same[:3], rtol=1e-5, atol=1e-6)
