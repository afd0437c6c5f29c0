"""The bank split along its parameters over the ranks of a process group.

A rank combines its own slice; the instances are all-gathered and their gradients reduce-scattered, so the
traffic is that of the small models, whatever the number of experts. Outside torch.distributed there is one
rank and nothing is sent.

Legend: W mixtures, P parameters of one model, p of them on this rank (padded to be equal everywhere).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Which slice of P this rank holds."""

    num_params: int
    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls, num_params: int) -> Sharding:
        """The sharding over the default process group, or over one rank where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(num_params=num_params)
        return cls(num_params=num_params, rank=dist.get_rank(), world_size=dist.get_world_size())

    @property
    def width(self) -> int:
        """p: columns a rank holds, the last ones padding where P does not divide evenly."""
        return -(-self.num_params // self.world_size)

    @property
    def columns(self) -> slice:
        """This rank's columns of [0, P)."""
        start = min(self.rank * self.width, self.num_params)
        return slice(start, min(start + self.width, self.num_params))

    def shard(self, full_P: torch.Tensor) -> torch.Tensor:
        """This rank's slice of the last axis, padded with zeros to `width`."""
        part = full_P[..., self.columns]
        padding = self.width - part.shape[-1]
        return torch.nn.functional.pad(part, (0, padding)).contiguous()

    def gather(self, part_Wp: torch.Tensor) -> torch.Tensor:
        """[W, p] of every rank → [W, P] on every rank."""
        if self.world_size == 1:
            return part_Wp
        parts = part_Wp.new_empty(self.world_size, *part_Wp.shape)
        dist.all_gather(list(parts.unbind()), part_Wp.contiguous())
        return parts.transpose(0, 1).reshape(len(part_Wp), -1)[:, : self.num_params]

    def reduce_scatter(self, full_WP: torch.Tensor) -> torch.Tensor:
        """[W, P] of every rank → the sum over ranks of this rank's columns, [W, p]."""
        if self.world_size == 1:
            return full_WP
        padding = self.width * self.world_size - self.num_params
        full = torch.nn.functional.pad(full_WP, (0, padding))
        parts = full.view(len(full), self.world_size, self.width).transpose(0, 1).contiguous()
        part = full.new_empty(len(full), self.width)
        dist.reduce_scatter(part, list(parts.unbind()))
        return part

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor
