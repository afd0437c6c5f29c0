"""Algorithm 2 of the paper (arXiv 2502.01804) in plain autograd: the page to read first.

A Soup-of-Experts holds shared parameters S, experts E_1 … E_N and a router φ. Domain weights h make one model of it,
Θ = S + Σ_j α_j E_j with α = φ(h). A training step draws h, draws a batch x from mix(h), and moves S, E and φ so that
the loss ℓ(Θ; x) falls: Θ learns to be good at mix(h), for every h.

The product computes the same steps and never forms the gradient of E, which is as large as N models (model/bank.py
says how). It does not use this page; its tests do.

Names are the paper's, and φ's parameters are ω. Legend: W mixtures in a step (Algorithm 2 has one), k domains,
N experts, P parameters of one model, B sequences of a mixture, L tokens in a sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy


def combine(S: torch.Tensor, E: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Equation 2: Θ = S + Σ_j α_j E_j, [W, P], of S [P], E [N, P] and α [W, N]; or [P] of α [N]."""
    return S + alpha @ E


def loss(backbone: torch.nn.Module, Theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """ℓ(Θ; x): mean next-token loss, in nats, of a Hugging Face language model with the parameters Θ [P].

    Args:
        Theta: the parameters one after the other, in the order of ``backbone.named_parameters()``.
        x: int64 [B, L + 1].
    """
    names, like = zip(*backbone.named_parameters(), strict=True)
    parts = Theta.split([parameter.numel() for parameter in like])
    parameters = {name: part.view_as(p) for name, part, p in zip(names, parts, like, strict=True)}
    logits = functional_call(backbone, parameters, kwargs={"input_ids": x[:, :-1]}).logits
    return cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())


class Reference:
    """A soup and its optimizer; :meth:`step` is one step of Algorithm 2.

    Args:
        backbone: a Hugging Face causal language model with P parameters; only its shape counts.
        phi: the router, a module from h [W, k] to α [W, N].
        rates: learning rates of S, E and ω; the paper has one for all three (Table 3).
        clip: largest norm of the whole gradient (Table 3).
        expand: from E as it is trained to the experts [N, P], for low-rank experts (section 2.6).
    """

    def __init__(
        self,
        backbone: torch.nn.Module,
        phi: torch.nn.Module,
        S: torch.Tensor,
        E: torch.Tensor,
        *,
        rates: tuple[float, float, float] = (1e-4, 1e-4, 1e-4),
        clip: float = 0.1,
        epsilon: float = 1e-8,
        expand: Callable[[torch.Tensor], torch.Tensor] = lambda E: E,
    ):
        self.backbone, self.phi, self.clip, self.expand = backbone, phi, clip, expand
        self.S, self.E = S.detach().clone().requires_grad_(), E.detach().clone().requires_grad_()
        self.Z = [[self.S], [self.E], [*phi.parameters()]]
        groups = [{"params": z, "lr": rate} for z, rate in zip(self.Z, rates, strict=True)]
        self.optim = torch.optim.Adam(groups, eps=epsilon)

    def instantiate(self, h: torch.Tensor) -> torch.Tensor:
        """The models Θ [W, P] of domain weights h [W, k]: Combine(S, E, φ(h))."""
        return combine(self.S, self.expand(self.E), self.phi(h))

    def step(self, h: torch.Tensor, x: torch.Tensor) -> tuple[float, float]:
        """One step with h [W, k] drawn from π and x [W, B, L + 1] drawn from mix(h).

        Returns:
            The loss before the step and the norm of its gradient before clipping.
        """
        models = zip(self.instantiate(h), x, strict=True)
        value = torch.stack([loss(self.backbone, Theta, of_mixture) for Theta, of_mixture in models]).mean()
        self.optim.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for z in self.Z for p in z], self.clip)
        self.optim.step()
        return value.item(), norm.item()
