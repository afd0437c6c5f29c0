"""Models do not read ahead: later tokens change neither the logits nor the losses before them.

Those of routed methods are tested beside their routers, in test_smear.py, test_phatgoose.py and test_sparse_moe.py.
"""

from types import SimpleNamespace

import pytest
import torch

from soe_model.methods import METHODS
from soe_model.model.backbone import token_losses
from tests.soe_model.methods.circles import (
    GENERIC_K,
    ROUTED,
    WORDS,
    K,
    L,
    assert_causal,
    make,
    trained,
    windows,
)

TOKENS = windows(GENERIC_K, 12, torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_losses_causal(module):
    """The loss of position i is that of the word i + 1, so tokens from k on change the losses from k - 1 on."""
    before = token_losses(module, TOKENS)
    for k in range(1, L + 1):
        others = TOKENS.clone()
        others[:, k:] = (others[:, k:] + 3) % WORDS
        after = token_losses(module, others)
        torch.testing.assert_close(after[:, : k - 1], before[:, : k - 1], rtol=0, atol=1e-5)
        assert ((after[:, k - 1] - before[:, k - 1]).abs() > 1e-3).any()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - ROUTED))
def test_later_tokens_change_nothing_before_them(name):
    one = make(name, steps=8)  # a branch has one of them
    generator = torch.Generator().manual_seed(1)
    choosing = [windows(weights_K, 6, generator) for weights_K in torch.eye(K)]
    models_WP = one.instantiate(trained(one, torch.eye(K)), torch.eye(K), choosing)
    assert len(models_WP) == K
    for model_P in models_WP:
        one.loss(model_P, TOKENS)
        module = one._backbone.module.eval()  # which is that model now
        assert_causal(module, TOKENS[:, :L], 0.05)
        assert_losses_causal(module)


def test_a_model_that_reads_ahead_is_found():
    """Or the test above could not fail. A loss knows the next word anyway, but not the one after it."""

    class Ahead(torch.nn.Module):
        def __init__(self, distance):
            super().__init__()
            self.distance = distance
            self.table = torch.nn.Parameter(
                torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(2))
            )

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.table[input_ids.roll(-self.distance, 1)])

    with pytest.raises(AssertionError, match="not close"):
        assert_causal(Ahead(1), TOKENS[:, :L], 0.05)
    with pytest.raises(AssertionError, match="not close"):
        assert_losses_causal(Ahead(2))
