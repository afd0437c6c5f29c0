"""Coefficients learned by gradient descent on texts (section 2.7): only alpha moves, the bank stays as it is.

With g the gradient of the instance, the gradient of coefficient j is ``<g, expert_j>``. A step reads the experts twice:
to put the instance together, and for these products.

Legend: N experts, P parameters of one model, n windows, L tokens in a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from soe_model.bounds import finite_positive, require, whole
from soe_model.files.soup import SoupOfExperts
from soe_model.model.backbone import token_losses
from soe_model.model.flat_module import unflatten
from soe_model.specialists.evaluation import mean_loss
from storage_schema.errors import UserError

STOPPING_SHARE = 0.2
"""Of the windows of the texts; they say when learning stops."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How something is learned from a few windows, and when it stops."""

    steps: int = 100
    """At most."""
    learning_rate: float = 0.02
    """Of Adam."""
    relative: bool = False
    """Of coefficients: the rate is per root mean square of those it begins with, whose size is each soup's own."""
    batch_size: int = 8
    """Windows a step."""
    check_every: int = 10
    """Steps between two looks at the stopping windows."""
    patience: int = 3
    """Looks without a lower loss after which it stops; what was best is returned."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, ("steps", "batch_size", "check_every", "patience"), whole, "at least 1")
        require(self, ("learning_rate",), finite_positive, "positive and finite")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What became of it."""

    steps: int
    """Taken until it stopped."""
    best_step: int
    """The one that is returned; 0 is the start."""
    stopping_losses: tuple[float, ...]
    """Of the stopping windows, at the start and at each look; nats per token."""


Report = Callable[[int, int], None]


def learn_coefficients(
    soup: SoupOfExperts,
    start_N: torch.Tensor,
    windows_nL1: torch.Tensor,
    stopping_mL1: torch.Tensor,
    learning: Learning,
    *,
    report: Report = lambda done, of: None,
) -> tuple[torch.Tensor, Learned]:
    """Lower the loss of the windows by moving the coefficients from `start_N`, with held-out early stopping.

    Args:
        stopping_mL1: other windows, which say when to stop and which step was best.

    Returns:
        The coefficients float32 [N] with the least loss on the stopping windows (the start is one of them).

    Raises:
        ValueError: no window on one of the sides, or a soup without experts.
    """
    learning = _absolute(learning, start_N)
    coefficients_N, model, step = _descent(soup, start_N, learning)
    return descend(
        step,
        keep=lambda: coefficients_N.detach().clone(),
        loss=lambda: mean_loss(model, stopping_mL1),
        batches=batches_of(windows_nL1, learning),
        learning=learning,
        report=report,
    )


def coefficients_after(
    soup: SoupOfExperts,
    start_N: torch.Tensor,
    windows_nL1: torch.Tensor,
    learning: Learning,
    looks: Sequence[int],
    *,
    check: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The coefficients float32 [len(looks), N] after so many steps of the same descent; nothing is held out.

    Args:
        looks: ascending, at least 1; they stand in place of ``learning.steps``.
        check: called before each step; raises if the descent is to end.

    Raises ValueError as :func:`learn_coefficients`.
    """
    learning = _absolute(learning, start_N)
    coefficients_N, _, step = _descent(soup, start_N, learning)
    batches, found = batches_of(windows_nL1, learning), []
    for done in range(1, looks[-1] + 1):
        check()
        step(next(batches))
        if done in looks:
            found.append(coefficients_N.detach().clone())
    return torch.stack(found)


def _absolute(learning: Learning, start_N: torch.Tensor) -> Learning:
    """The same with a rate that is no longer relative to the coefficients' size."""
    if not learning.relative:
        return learning
    size = start_N.square().mean().sqrt().item() if len(start_N) else 0.0
    return replace(learning, learning_rate=learning.learning_rate * (size or 1.0), relative=False)


def _descent(
    soup: SoupOfExperts, start_N: torch.Tensor, learning: Learning
) -> tuple[torch.Tensor, torch.nn.Module, Callable[[torch.Tensor], None]]:
    """Coefficients to learn, the model of them, and a step on a batch [B, L + 1] that moves both."""
    if not len(start_N):
        raise UserError("the generic twin has no experts, so it has no coefficients to learn.")
    coefficients_N = start_N.clone().float().requires_grad_()
    model = soup.model(soup.instances(coefficients_N[None])[0])
    gradient_P = torch.zeros(soup.bank.num_params)
    gradients = unflatten(gradient_P, soup.layout)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    optimizer = torch.optim.Adam([coefficients_N], lr=learning.learning_rate)

    def step(batch_BL1: torch.Tensor) -> None:
        gradient_P.zero_()
        token_losses(model, batch_BL1).mean().backward()
        coefficients_N.grad = soup.bank.products(gradient_P)
        optimizer.step()
        if not coefficients_N.isfinite().all():
            raise diverged(learning)
        soup.attach(model, soup.instances(coefficients_N.detach()[None])[0])

    return coefficients_N, model, step


def two_sides(
    windows_nL1: torch.Tensor, document_n: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows to learn from, and those that say when to stop: of one window, nothing to learn.

    The smallest documents stop, until they have STOPPING_SHARE of the windows, but never the largest: so less than that
    where one document is nearly all, more where there are few. Of a single document its end stops. What is learned from
    a document helps on its other passages, whatever it does elsewhere: with such windows to stop by, a model was
    trained until it was 0.85 nats worse on other documents of the same source
    (tests/benchmarks/records/2026-11-30-figures.md).

    Args:
        document_n: of each window a number of its document; None: all are of one.
    """
    stopping = max(1, round(STOPPING_SHARE * len(windows_nL1)))
    held_n = torch.zeros(len(windows_nL1), dtype=torch.bool)
    of_n = held_n.long() if document_n is None else torch.as_tensor(document_n)
    numbers, counts = of_n.unique(return_counts=True)
    if len(numbers) == 1:
        held_n[-stopping:] = True
    for number in numbers[counts.argsort(stable=True)][:-1]:
        if held_n.sum() < stopping:
            held_n |= of_n == number
    return windows_nL1[~held_n], windows_nL1[held_n]


def batches_of(windows_nL1: torch.Tensor, learning: Learning) -> Iterator[torch.Tensor]:
    """Endless batches: each epoch in another order, a function of the seed. Raises ValueError without a window."""
    if not len(windows_nL1):
        raise UserError("no whole window of tokens to learn from; give more text.")
    generator = torch.Generator().manual_seed(learning.seed)
    return _endless(windows_nL1, min(learning.batch_size, len(windows_nL1)), generator)


def _endless(windows_nL1: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(windows_nL1), generator=generator)])
        yield windows_nL1[order[:size]]
        order = order[size:]


def diverged(learning: Learning) -> UserError:
    """The error of steps so large that what is learned is no number any more."""
    return UserError(
        f"learning_rate {learning.learning_rate:g} is too high: the losses are no numbers. Lower it."
    )


def descend(
    step: Callable[[torch.Tensor], None],
    *,
    keep: Callable[[], torch.Tensor],
    loss: Callable[[], float],
    batches: Iterator[torch.Tensor],
    learning: Learning,
    report: Report,
) -> tuple[torch.Tensor, Learned]:
    """Take steps until the held-out loss no longer falls; what was best, and how it went."""
    best, best_step, losses = keep(), 0, [loss()]
    done = 0
    while done < learning.steps:
        report(done, learning.steps)
        for _ in range(min(learning.check_every, learning.steps - done)):
            step(next(batches))
            done += 1
        losses.append(loss())
        if not math.isfinite(losses[-1]):
            raise diverged(learning)
        if losses[-1] < min(losses[:-1]):
            best, best_step = keep(), done
        looks_since = (done - best_step) / learning.check_every
        if looks_since >= learning.patience:
            break
    report(learning.steps, learning.steps)
    return best, Learned(steps=done, best_step=best_step, stopping_losses=tuple(losses))
