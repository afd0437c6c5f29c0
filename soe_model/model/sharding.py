"""How the bank is split along its parameters over the ranks of a process group.

A rank combines its own slice of every instance. Each instance goes to the ranks whose sequences need it, and its
gradient comes back: an all-gather and a reduce-scatter with one mixture, an all-to-all of the same volume with one
mixture per rank. So the traffic is that of the small models, whatever the number of experts. Outside
torch.distributed there is one rank and nothing is sent.

Legend: W mixtures of a step, V of them on this rank, P parameters of one model, p of them on this rank (padded
to be equal everywhere), R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

ALIGNMENT = 1024
"""The columns of a shard are a multiple of this, so that those with a common scale or second moment lie on one rank."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Which slice of P this rank holds."""

    num_params: int
    rank: int = 0
    world_size: int = 1
    common: int = 0
    """So many instances after those of the mixtures go to every rank."""

    @classmethod
    def current(cls, num_params: int, *, common: int = 0) -> Sharding:
        """The sharding over the default process group, or over one rank where there is none."""
        rank, world_size = current_rank()
        return cls(num_params=num_params, rank=rank, world_size=world_size, common=common)

    @property
    def width(self) -> int:
        """p: the columns of a rank; the last ones are padding where P does not divide evenly."""
        return -(-self.num_params // (self.world_size * ALIGNMENT)) * ALIGNMENT

    @property
    def columns(self) -> slice:
        """This rank's columns of [0, P)."""
        start = min(self.rank * self.width, self.num_params)
        return slice(start, min(start + self.width, self.num_params))

    def owned(self, num_instances: int, rank: int | None = None) -> list[int]:
        """The instances of which a rank has sequences: those of its mixtures, and the common ones."""
        first = num_instances - self.common
        mixtures = owned_mixtures(first, self.rank if rank is None else rank, self.world_size)
        return [*mixtures, *range(first, num_instances)]

    def shard(self, full_P: torch.Tensor) -> torch.Tensor:
        """This rank's slice of the last axis, padded with zeros to `width`."""
        part = full_P[..., self.columns]
        padding = self.width - part.shape[-1]
        return torch.nn.functional.pad(part, (0, padding)).contiguous()

    def gather(self, part_Wp: torch.Tensor) -> torch.Tensor:
        """From [W, p] on every rank to [W, P] on every rank."""
        if self.world_size == 1:
            return part_Wp[:, : self.num_params]
        parts = part_Wp.new_empty(self.world_size, *part_Wp.shape)
        dist.all_gather(list(parts.unbind()), part_Wp.contiguous())
        return parts.transpose(0, 1).reshape(len(part_Wp), -1)[:, : self.num_params]

    def to_owners(self, part_Wp: torch.Tensor, out_VP: torch.Tensor) -> None:
        """From this rank's columns of all instances to all columns of its own instances, padded [V, R * p]."""
        every = range(self.world_size)
        sent = torch.cat([part_Wp[self.owned(len(part_Wp), rank)].reshape(-1) for rank in every])
        received_RVp = part_Wp.new_empty(self.world_size, len(out_VP), self.width)
        sizes = [len(self.owned(len(part_Wp), rank)) * self.width for rank in every]
        dist.all_to_all_single(
            received_RVp.view(-1), sent, [received_RVp[0].numel()] * self.world_size, sizes
        )
        out_VP.view(len(out_VP), self.world_size, self.width).copy_(received_RVp.transpose(0, 1))

    def from_owners(self, grads_VP: torch.Tensor, num_instances: int) -> torch.Tensor:
        """From the gradients of this rank's instances, padded [V, R * p], to its columns of all gradients, [W, p].

        The parts that several ranks have of one instance's gradient are added in the order of the ranks.
        """
        if self.world_size == 1:
            return grads_VP
        owned = [self.owned(num_instances, rank) for rank in range(self.world_size)]
        sent = grads_VP.view(len(grads_VP), self.world_size, self.width).transpose(0, 1).contiguous()
        sizes = [len(mixtures) * self.width for mixtures in owned]
        received = grads_VP.new_empty(sum(sizes))
        dist.all_to_all_single(received, sent.view(-1), sizes, [sent[0].numel()] * self.world_size)
        total_Wp = grads_VP.new_zeros(num_instances, self.width)
        for mixtures, part in zip(owned, received.split(sizes), strict=True):
            total_Wp[mixtures] += part.view(len(mixtures), self.width)
        return total_Wp

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def current_rank() -> tuple[int, int]:
    """Rank and world size of the default process group; 0 and 1 where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def owned_mixtures(num_mixtures: int, rank: int, world_size: int) -> range:
    """The mixtures that a rank's slots belong to. All W mixtures have equally many slots, in order."""
    return range(rank * num_mixtures // world_size, -(-(rank + 1) * num_mixtures // world_size))
