"""A module whose parameters are views of one flat vector, and its gradients views of another.

So the soup needs to know nothing of an architecture: an instance is written into ``params_P`` and its
gradient read from ``grads_P``. The addresses never change, which keeps compiled graphs valid; a gradient
must therefore be zeroed in place, never set to None.

Legend: P parameters of one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class ParameterSlot:
    """Where one parameter lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """In elements."""

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


class FlatModule:
    """Wraps `module`; tied parameters appear once, under the first of their names."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.layout: list[ParameterSlot] = []
        offset = 0
        parameters = dict(module.named_parameters())
        for name, parameter in parameters.items():
            if parameter.dtype != torch.float32:
                raise ValueError(f"parameter {name} is {parameter.dtype}; the bank is trained in float32.")
            self.layout.append(ParameterSlot(name=name, shape=tuple(parameter.shape), offset=offset))
            offset += parameter.numel()
        device = next(module.parameters()).device
        self.params_P = torch.empty(offset, device=device)
        self.grads_P = torch.zeros(offset, device=device)
        for slot, parameter in zip(self.layout, parameters.values(), strict=True):
            place = slice(slot.offset, slot.offset + slot.size)
            view = self.params_P[place].view(slot.shape)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.grads_P[place].view(slot.shape)

    @property
    def num_params(self) -> int:
        return len(self.params_P)


def unflatten(flat_P: torch.Tensor, layout: list[ParameterSlot]) -> dict[str, torch.Tensor]:
    """Name → tensor, as views of `flat_P`."""
    return {slot.name: flat_P[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in layout}
