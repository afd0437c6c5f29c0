"""The closed-form step against plain autograd through ``shared + coefficients @ experts``."""

import torch
from torch.func import functional_call

from soe_model.backbone import gpt2_config, token_losses
from soe_model.flat import unflatten
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.training import NonFiniteLoss, SoupTrainer, learning_rate_factor

K, W, B, L = 5, 3, 6, 8
BACKBONE = gpt2_config(vocab_size=40, sequence_length=L, embedding_size=8, num_layers=2, num_heads=2)


def make_trainer(num_experts=4, expert_std=0.05, **training):
    settings = dict(
        steps=10, batch_size=B, sequence_length=L, mixtures_per_step=W, warmup_steps=1, learning_rate=1e-2,
        expert_learning_rate=5e-3, router_learning_rate=2e-2, gradient_clip=0.5,
    )  # fmt: skip
    soup = SoupConfig(
        backbone=BACKBONE, num_experts=num_experts, num_domains=K, router_hidden=6, expert_std=expert_std
    )
    return SoupTrainer(soup, TrainingConfig(**settings | training))


def make_batch(step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 40, (B, L + 1), generator=generator)
    weights = torch.rand(W, K, generator=generator)
    return tokens, torch.arange(B) // (B // W), weights / weights.sum(1, keepdim=True)


class Oracle:
    """The same soup with dense autograd gradients, ``clip_grad_norm_`` and ``torch.optim.Adam``."""

    def __init__(self, trainer):
        self.layout, self.model, self.training = (
            trainer.backbone.layout,
            trainer.backbone.module,
            trainer.training,
        )
        self.shared = trainer.bank.shared_p.clone().requires_grad_()
        self.experts = trainer.bank.experts_Np.clone().requires_grad_()
        self.router = trainer.router.module
        self.router_params = [p.detach().clone().requires_grad_() for p in self.router.parameters()]
        self.groups = [
            ([self.shared], self.training.learning_rate),
            ([self.experts], self.training.expert_learning_rate),
            (self.router_params, self.training.router_learning_rate),
        ]
        self.optimizer = torch.optim.Adam([{"params": p, "lr": lr} for p, lr in self.groups])

    def step(self, number, tokens, mixture, weights):
        names = [name for name, _ in self.router.named_parameters()]
        coefficients = functional_call(
            self.router, dict(zip(names, self.router_params, strict=True)), weights
        )
        instances = self.shared + coefficients @ self.experts
        loss = 0
        for w in range(W):
            run = lambda t, w=w: functional_call(  # noqa: E731
                _Losses(self.model),
                {f"model.{k}": v for k, v in unflatten(instances[w], self.layout).items()},
                t,
            )
            loss = loss + run(tokens[mixture == w]).sum() / (B * L)
        self.optimizer.zero_grad()
        loss.backward()
        everything = [p for group, _ in self.groups for p in group]
        norm = torch.nn.utils.clip_grad_norm_(everything, self.training.gradient_clip)
        factor = learning_rate_factor(number, self.training)
        for group, (_, rate) in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        return loss.item(), norm.item()


class _Losses(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return token_losses(self.model, tokens)


def test_step_equals_autograd_with_dense_gradients():
    trainer = make_trainer()
    oracle_trainer = make_trainer()
    oracle = Oracle(oracle_trainer)
    oracle.model = oracle_trainer.backbone.module
    for number in range(4):
        batch = make_batch(number)
        expected_loss, expected_norm = oracle.step(number, *batch)
        result = trainer.train_step(*batch)
        assert abs(result.loss - expected_loss) < 1e-5
        assert abs(result.gradient_norm - expected_norm) < 1e-5 * max(1, expected_norm)
    torch.testing.assert_close(trainer.bank.shared_p, oracle.shared.detach(), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(trainer.bank.experts_Np, oracle.experts.detach(), rtol=1e-4, atol=2e-5)
    flat = torch.cat([p.detach().flatten() for p in oracle.router_params])
    torch.testing.assert_close(trainer.router.params_P, flat, rtol=1e-4, atol=2e-5)


def test_generic_twin_is_plain_training_of_shared():
    twin, oracle_trainer = make_trainer(num_experts=0), make_trainer(num_experts=0)
    model = oracle_trainer.backbone
    optimizer = torch.optim.Adam([model.params_P], lr=1e-2)
    for number in range(3):
        tokens, mixture, weights = make_batch(number)
        model.grads_P.zero_()
        loss = token_losses(model.module, tokens).mean()
        loss.backward()
        model.params_P.grad = model.grads_P.clone()
        torch.nn.utils.clip_grad_norm_([model.params_P], 0.5)
        optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(number, twin.training)
        optimizer.step()
        assert abs(twin.train_step(tokens, mixture, weights).loss - loss.item()) < 1e-5
    torch.testing.assert_close(twin.bank.shared_p, model.params_P, rtol=1e-4, atol=1e-5)


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
        assert "step 1" in str(error)
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


def test_warmup_then_cosine():
    training = TrainingConfig(steps=110, warmup_steps=10, final_learning_rate_fraction=0.1, batch_size=8)
    factors = [learning_rate_factor(s, training) for s in range(111)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[10] == 1.0
    assert abs(factors[60] - 0.55) < 1e-12 and abs(factors[110] - 0.1) < 1e-12
