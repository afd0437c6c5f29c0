"""SMEAR's bank: it is the expert that its router chooses, and tokens see nothing of what comes after them."""

import pytest
import torch
from torch import nn

from soe_model.model.merged_experts import EXPERT_TENSORS, FrozenExpert, MergedExperts, SegmentRouter

B, L, D, N, C, T = 3, 7, 6, 4, 5, 3
"""The last of three segments has one token."""


def make(num_experts=N, *, dropout=0.0):
    """Experts and router of a size that shows: at the start they add nearly nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bank = MergedExperts(
            nn.Linear(D, D),
            embedding_size=D,
            num_experts=num_experts,
            width=C,
            segment_length=T,
            dropout=dropout,
        )
        for name in EXPERT_TENSORS:
            nn.init.normal_(getattr(bank, name))
        nn.init.normal_(bank.router.column_norm.weight, std=2.0)
    return bank.requires_grad_(False).eval()


def hidden():
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(1))


def dense(bank, expert):
    """The MLP and one expert, as a block without a router would have them."""
    output = bank.mlp(hidden())
    down, down_bias, up, up_bias = (getattr(bank, name)[expert] for name in EXPERT_TENSORS)
    return output + nn.functional.silu(output @ down + down_bias) @ up + up_bias


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expert", range(N))
def test_a_router_that_is_sure_gives_that_expert(expert):
    bank = make()
    bank.router.bias_N[expert] = 1e4
    assert_same(bank(hidden()), dense(bank, expert))


def test_equal_experts_are_a_dense_model_whatever_the_router_says():
    bank = make()
    for name in EXPERT_TENSORS:
        getattr(bank, name)[:] = getattr(bank, name)[:1].clone()
    assert bank(hidden()).isfinite().all() and bank.shares_BSN.std() > 0.05
    assert_same(bank(hidden()), dense(bank, 0))


def test_one_expert_is_a_dense_model():
    bank = make(num_experts=1)
    assert_same(bank(hidden()), dense(bank, 0))


def test_the_order_of_experts_and_columns_does_not_matter():
    bank, order = make(), torch.tensor([2, 0, 3, 1])
    nn.init.normal_(bank.router.bias_N)
    before = bank(hidden())
    for name in EXPERT_TENSORS:
        getattr(bank, name)[:] = getattr(bank, name)[order]
    assert (bank(hidden()) - before).abs().max() > 0.1
    bank.router.columns_ND[:], bank.router.bias_N[:] = (
        bank.router.columns_ND[order],
        bank.router.bias_N[order],
    )
    assert_same(bank(hidden()), before)


def seen_too_early(bank):
    """The largest change of a token's output when all tokens after it become others."""
    first, found = hidden(), []
    for k in range(1, L):
        other = first.clone()
        other[:, k:] += 5
        found.append((bank(other) - bank(first))[:, :k].abs().max().item())
    return max(found)


def test_tokens_see_nothing_of_what_comes_after_them(monkeypatch):
    bank = make()
    assert seen_too_early(bank) < 1e-5
    own = lambda router, segments: segments.mean(2)  # noqa: E731
    monkeypatch.setattr(SegmentRouter, "past", own)  # each segment by itself: the test must see that
    assert seen_too_early(bank) > 0.1


def test_a_segment_is_routed_by_all_tokens_before_it():
    bank, tokens = make(), hidden()
    bank(tokens)
    shares, output = bank.shares_BSN, bank.mlp(tokens)
    assert torch.equal(shares[0, 0], shares[1, 0])  # nothing is known yet
    assert (shares[0, 1:] - shares[1, 1:]).abs().amax(-1).min() > 0.01
    past = bank.router.past(torch.nn.functional.pad(output, (0, 0, 0, 2)).unflatten(1, (-1, T)))
    assert_same(past, torch.stack([torch.zeros(B, D), output[:, :3].mean(1), output[:, :6].mean(1)], 1))


def test_dropped_experts_have_next_to_no_share_and_the_rest_sums_to_one(monkeypatch):
    bank = make(dropout=0.25)
    whole = bank.router(hidden()[:, :6].unflatten(1, (-1, T)))
    kept = torch.ones(B, 2, N, dtype=torch.bool)
    kept[0, 0] = False
    kept[1, 1, 2] = kept[2, 0, 0] = kept[2, 0, 3] = False
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.where(kept, 0.25, 0.2499))
    found = bank.train().router(hidden()[:, :6].unflatten(1, (-1, T)))
    expected = torch.where(kept, whole, 0) + 1e-6
    assert_same(found, expected / expected.sum(-1, keepdim=True))
    assert_same(found[0, 0], torch.full((N,), 1 / N))
    assert found[~kept].unique()[-2] < 1e-3  # but for those of 1/N


def test_a_frozen_expert_is_the_experts_merged_once():
    bank, shares = make(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    bank.router.columns_ND[:] = 0  # so that the router gives the same shares to all
    bank.router.bias_N[:] = shares.log()
    alone = FrozenExpert(bank, shares)
    assert_same(alone(hidden()), bank(hidden()))
    assert not any("router" in name for name in alone.state_dict())
