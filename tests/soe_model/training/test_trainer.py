"""The closed-form step against the reference, and what else a step promises."""

import pytest
import torch

from soe_model.model.backbone import gpt2_config, token_losses
from soe_model.optimizers import AdamConfig
from soe_model.optimizers.compiling import can_compile
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.training.step import NonFiniteLoss, learning_rate_factor
from soe_model.training.trainer import SoupTrainer
from tests.extras import missing
from tests.soe_model.oracle import assert_same_parameters, reference_of, take_the_same_steps

K, W, B, L = 5, 3, 6, 8
ADAM = AdamConfig(epsilon=1e-4)
"""Two computations are compared. With the usual epsilon a gradient that is nothing but rounding, other on each CPU, is
divided by its own size and moves its parameter as far as any other."""
BACKBONE = gpt2_config(vocab_size=40, sequence_length=L, embedding_size=8, num_layers=2, num_heads=2)


def make_trainer(
    num_experts=4, expert_std=0.05, expert_rank=None, backbone=BACKBONE, generic_K=None, **training
):
    settings = dict(
        steps=10, batch_size=B, sequence_length=L, mixtures_per_step=W, warmup_steps=1, learning_rate=1e-2,
        expert_learning_rate=5e-3, router_learning_rate=2e-2, gradient_clip=0.5, adam=ADAM,
    )  # fmt: skip
    soup = SoupConfig(
        backbone=backbone,
        num_experts=num_experts,
        num_domains=K,
        router_hidden=6,
        expert_std=expert_std,
        expert_rank=expert_rank,
    )
    return SoupTrainer(soup, TrainingConfig(**settings | training), generic_K=generic_K)


def make_batch(step, *, batch_size=B, mixtures=W):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 40, (batch_size, L + 1), generator=generator)
    weights = torch.rand(mixtures, K, generator=generator)
    mixture = torch.arange(batch_size) // (batch_size // mixtures)
    return tokens, mixture, weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("mixtures", [1, W])
def test_steps_are_those_of_the_reference(mixtures):
    trainer = make_trainer(mixtures_per_step=mixtures)
    reference = reference_of(trainer)
    take_the_same_steps(trainer, reference, [make_batch(number, mixtures=mixtures) for number in range(4)])
    assert_same_parameters(trainer, reference)


def test_the_generic_twin_is_the_reference_without_experts(recwarn):
    twin = make_trainer(num_experts=0)
    assert not [one for one in recwarn if "zero-element" in str(one.message)]
    reference = reference_of(twin)
    take_the_same_steps(twin, reference, [make_batch(number) for number in range(3)])
    assert_same_parameters(twin, reference)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_losses_of_instances_are_those_of_the_models_alone(micro_batch_size):
    trainer = make_trainer(micro_batch_size=micro_batch_size)
    trainer.train_step(*make_batch(0))
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    tokens, mixture, weights = make_batch(1)
    found_W = trainer.instance_losses(tokens, mixture, weights)
    for w, instance_P in enumerate(trainer.instantiate(weights)):
        trainer.backbone.params_P.copy_(instance_P)
        with torch.no_grad():
            alone = token_losses(trainer.backbone.module, tokens[mixture == w]).mean()
        assert found_W[w].item() == pytest.approx(alone.item(), rel=1e-5)
    assert found_W.unique().numel() == W
    trainer.backbone.params_P.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.tensors().items())


def test_a_step_that_trains_the_generic_instance_is_one_of_twice_the_batch():
    """Its second half is the same sequences, under mixtures that are all the generic one."""
    generic_K = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    trainer = make_trainer(train_generic=True, generic_K=generic_K)
    twice = make_trainer(batch_size=2 * B, mixtures_per_step=2 * W)
    for number in range(3):
        tokens, mixture, weights = make_batch(number)
        own_loss = trainer.instance_losses(tokens, mixture, weights).mean().item()
        found = trainer.train_step(tokens, mixture, weights)
        all_weights = torch.cat([weights, generic_K.expand(W, -1)])
        both = twice.train_step(torch.cat([tokens, tokens]), torch.cat([mixture, mixture + W]), all_weights)
        assert found.gradient_norm == pytest.approx(both.gradient_norm, rel=1e-4)
        assert found.loss == pytest.approx(own_loss, rel=1e-5)
    for name, tensor in twice.tensors().items():
        torch.testing.assert_close(trainer.tensors()[name], tensor, rtol=1e-4, atol=1e-5)
    for other in (dict(), dict(num_experts=0, generic_K=generic_K)):
        with pytest.raises(ValueError, match="train_generic needs experts and the generic mixture"):
            make_trainer(train_generic=True, **other)


@pytest.mark.parametrize("mixtures", [[], [1]])
def test_a_generic_instance_that_is_not_finite_is_named(mixtures):
    trainer = make_trainer(train_generic=True, generic_K=torch.full((K,), float("nan")))
    tokens, mixture, weights = make_batch(0)
    weights[mixtures] = float("nan")
    with pytest.raises(NonFiniteLoss, match="and the generic instance; nothing was updated") as error:
        trainer.train_step(tokens, mixture, weights)
    assert error.value.mixtures == mixtures


@pytest.mark.parametrize("mixtures", [1, W])
def test_micro_batches_of_the_generic_instance_give_the_step_of_the_whole(mixtures):
    of = dict(train_generic=True, generic_K=torch.full((K,), 1 / K), mixtures_per_step=mixtures)
    whole, parts = make_trainer(**of), make_trainer(micro_batch_size=2, **of)
    for number in range(2):
        results = [one.train_step(*make_batch(number, mixtures=mixtures)) for one in (whole, parts)]
        assert results[1].loss == pytest.approx(results[0].loss, rel=1e-5)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor, rtol=1e-4, atol=1e-5)


def test_same_seed_gives_the_same_bits_and_another_seed_does_not():
    def losses(seed):
        trainer = make_trainer(seed=seed)
        return [trainer.train_step(*make_batch(n)).loss for n in range(3)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_nan_stops_before_anything_is_updated():
    trainer = make_trainer()
    trainer.train_step(*make_batch(0))
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    trainer.bank.shared_p[3] = float("nan")
    before["shared"][3] = float("nan")
    try:
        trainer.train_step(*make_batch(1))
    except NonFiniteLoss as error:
        assert "step 1" in str(error) and error.step == 1 and error.mixtures == [0, 1, 2]
    else:
        raise AssertionError("a NaN loss was accepted")
    for name, tensor in trainer.tensors().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert trainer.step == 1


def test_parameter_addresses_never_change():
    trainer = make_trainer()
    pointers = [(p.data_ptr(), p.grad.data_ptr()) for p in trainer.backbone.module.parameters()]
    trainer.train_step(*make_batch(0))
    assert pointers == [(p.data_ptr(), p.grad.data_ptr()) for p in trainer.backbone.module.parameters()]


def test_a_nan_of_one_mixture_names_it():
    trainer = make_trainer()
    trainer.router.params_P.zero_()
    tokens, mixture, weights = make_batch(0)
    weights[1] = float("nan")
    with pytest.raises(NonFiniteLoss) as error:
        trainer.train_step(tokens, mixture, weights)
    assert error.value.mixtures == [1]


def test_sequences_of_a_mixture_are_taken_where_they_lie():
    """As slices: a choice by comparing would make a GPU wait, once for each mixture."""
    trainer, places = make_trainer(), []
    trainer._losses = lambda model, tokens: (places.append(tokens.data_ptr()), token_losses(model, tokens))[1]
    tokens, mixture, weights = make_batch(0)
    trainer.train_step(tokens, mixture, weights)
    assert places == [
        tokens[mixture == w].shape[0] * w * tokens[0].nbytes + tokens.data_ptr() for w in range(W)
    ]


@pytest.mark.parametrize(
    ("mixtures", "size"), [(W, 1), (W, 2), (W, 5), (1, 4)]
)  # the last: 4 sequences, then 2
def test_micro_batches_give_the_step_of_the_whole(mixtures, size):
    whole = make_trainer(mixtures_per_step=mixtures)
    parts = make_trainer(mixtures_per_step=mixtures, micro_batch_size=size)
    for number in range(3):
        batch = make_batch(number, mixtures=mixtures)
        expected, found = whole.train_step(*batch), parts.train_step(*batch)
        assert abs(found.loss - expected.loss) < 1e-5
    torch.testing.assert_close(parts.bank.shared_p, whole.bank.shared_p, rtol=1e-5, atol=5e-6)


def test_deterministic_mode_is_on_during_the_step_and_gives_the_same_losses():
    trainer, during = make_trainer(deterministic=True), []
    trainer.backbone.module.register_forward_hook(
        lambda *_: during.append(torch.are_deterministic_algorithms_enabled())
    )
    found = trainer.train_step(*make_batch(0)).loss
    assert during == [True] * W and not torch.are_deterministic_algorithms_enabled()
    assert abs(found - make_trainer().train_step(*make_batch(0)).loss) < 1e-6


def test_what_the_process_had_set_is_restored_also_after_an_error():
    trainer = make_trainer(deterministic=True)
    trainer.bank.shared_p[3] = float("nan")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(NonFiniteLoss):
            trainer.train_step(*make_batch(0))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


LLAMA = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": L, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_tiny_llama_learns_as_the_reference_does():
    trainer = make_trainer(backbone=LLAMA)
    reference = reference_of(trainer)
    take_the_same_steps(trainer, reference, [make_batch(number) for number in range(3)])
    assert_same_parameters(trainer, reference)


@pytest.mark.long  # the compiler takes twenty seconds
def test_a_compiled_model_gives_the_losses_of_the_eager_one():
    if not can_compile("cpu"):
        missing("a C++ compiler", "Debian's package g++")
    eager, fast = make_trainer(), make_trainer(compile_model=True)
    pointers = [(p.data_ptr(), p.grad.data_ptr()) for p in fast.backbone.module.parameters()]
    for number in range(3):
        expected = eager.train_step(*make_batch(number)).loss
        assert abs(fast.train_step(*make_batch(number)).loss - expected) < 1e-5
    assert pointers == [(p.data_ptr(), p.grad.data_ptr()) for p in fast.backbone.module.parameters()]


def test_warmup_then_cosine():
    training = TrainingConfig(steps=110, warmup_steps=10, final_learning_rate_fraction=0.1, batch_size=8)
    factors = [learning_rate_factor(s, training) for s in range(111)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[10] == 1.0
    assert abs(factors[60] - 0.55) < 1e-12 and abs(factors[110] - 0.1) < 1e-12
