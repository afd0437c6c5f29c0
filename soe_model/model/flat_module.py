"""A module whose parameters are views of one flat vector, and its gradients views of another.

So the soup needs to know nothing of an architecture: it writes an instance into ``params_WP`` and reads its gradient
from ``grads_WP``. A step with several instances has a row for each, and `use` points the module at one of them. The
buffers never move, so an instance has the same addresses in every step. Zero a gradient in place and never set it to
None: it would no longer be a view.

Legend: W instances, P parameters of one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from storage_schema.errors import UserError


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
    """Wraps `module`; tied parameters appear once, under the first of their names.

    Args:
        instances: W, the number of rows of the buffers; the module starts as the first row.
        multiple: each row is padded with zeros to a multiple of this many elements.
    """

    def __init__(self, module: nn.Module, *, instances: int = 1, multiple: int = 1):
        self.module = module
        self.layout: list[ParameterSlot] = []
        offset = 0
        self._parameters = dict(module.named_parameters())
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32:
                raise UserError(f"parameter {name} is {parameter.dtype}; the bank is trained in float32.")
            self.layout.append(ParameterSlot(name=name, shape=tuple(parameter.shape), offset=offset))
            offset += parameter.numel()
        self.num_params = offset
        width = -(-offset // multiple) * multiple
        device = next((parameter.device for parameter in module.parameters()), None)
        self.padded_params_WP = torch.zeros(instances, width, device=device)
        self.padded_grads_WP = torch.zeros(instances, width, device=device)
        self.params_WP = self.padded_params_WP[:, :offset]
        self.grads_WP = self.padded_grads_WP[:, :offset]
        self.params_P, self.grads_P = self.params_WP[0], self.grads_WP[0]
        for slot, parameter in zip(self.layout, self._parameters.values(), strict=True):
            self.params_P[slot.offset : slot.offset + slot.size] = parameter.data.view(-1)
        self._views = [
            [
                (params.view(slot.shape), grads.view(slot.shape))
                for slot, params, grads in zip(
                    self.layout,
                    *(self._slots(rows[w]) for rows in (self.params_WP, self.grads_WP)),
                    strict=True,
                )
            ]
            for w in range(instances)
        ]
        self.use(0)

    def _slots(self, row_P: torch.Tensor) -> list[torch.Tensor]:
        return [row_P[slot.offset : slot.offset + slot.size] for slot in self.layout]

    def use(self, instance: int) -> None:
        """Make the module this instance; its gradients then go to this instance's row."""
        for parameter, (values, gradient) in zip(
            self._parameters.values(), self._views[instance], strict=True
        ):
            parameter.data, parameter.grad = values, gradient


def empty_instances(number: int, num_params: int) -> torch.Tensor:
    """Uninitialised room for some instances, float32 [number, P].

    NumPy asks the kernel for huge pages; with torch each page of 4 KB would be faulted in one by one.
    """
    return torch.from_numpy(np.empty((number, num_params), np.float32))


def unflatten(flat_P: torch.Tensor, layout: list[ParameterSlot]) -> dict[str, torch.Tensor]:
    """The parameters by name, as views of `flat_P`."""
    return {slot.name: flat_P[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in layout}
