"""The reference (Algorithm 2 in plain autograd) beside a trainer: both begin alike, and take the same steps.

The reference computes in float64, so that all of a difference is the trainer's rounding. It must not be divided by the
size of a gradient that is nothing but rounding, other on each CPU: give the trainer Adam's `epsilon` far above that.
"""

from copy import deepcopy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from soe_model.model.low_rank import LowRankExperts
from soe_model.reference import Reference
from soe_model.training.step import learning_rate_factor


def reference_of(trainer, E=None, **options):
    """The reference at the trainer's state, with its rates; `E` where the experts are not of full size."""
    training, num_params = trainer.training, trainer.backbone.num_params
    return Reference(
        deepcopy(trainer.backbone.module).double(),
        deepcopy(trainer.router.module).double(),
        trainer.bank.shared_p[:num_params].double(),
        (trainer.bank.experts.weights_Np[:, :num_params] if E is None else E).double(),
        rates=(training.learning_rate, training.expert_learning_rate, training.router_learning_rate),
        clip=training.gradient_clip,
        epsilon=training.adam.epsilon,
        **options,
    )


def take_the_same_steps(trainer, reference, batches):
    """Train both on the batches, comparing loss and gradient norm of each step."""
    schedule = LambdaLR(reference.optim, lambda step: learning_rate_factor(step, trainer.training))
    for tokens, mixture, weights in batches:
        loss, norm = reference.step(weights.double(), tokens.unflatten(0, (len(weights), -1)))
        schedule.step()
        result = trainer.train_step(tokens, mixture, weights)
        assert result.loss == pytest.approx(loss, abs=1e-5)
        assert result.gradient_norm == pytest.approx(norm, rel=1e-5, abs=1e-5)


def assert_same_parameters(trainer, reference):
    """Shared parameters, experts (or their factors) and router are the reference's; the padding is zero."""
    experts = trainer.bank.experts
    of_experts = experts.factors_NQ if isinstance(experts, LowRankExperts) else experts.weights_Np
    found = [trainer.bank.shared_p, of_experts, trainer.router.params_P]
    expected = [reference.S, reference.E, torch.nn.utils.parameters_to_vector(reference.phi.parameters())]
    for tensor, other in zip(found, expected, strict=True):
        whole = tensor[..., : other.shape[-1]]
        torch.testing.assert_close(whole, other.detach().float(), rtol=1e-5, atol=5e-6)
        assert not tensor[..., other.shape[-1] :].any()
