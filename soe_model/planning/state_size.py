"""How large the state of a run is: in a worker's memory, in a checkpoint and in the finished soup.

The sizes are exact: they follow from the shapes that the trainer allocates, and the tests compare them with those.
Legend: N experts, P parameters of one model, p of them on a rank, Q numbers of a low-rank expert's factors.
"""

from __future__ import annotations

from soe_model.optimizers import MOMENTS, bytes_of
from soe_model.planning.setup import Setup
from soe_model.presets import SoupConfig

FLOAT = 4
ADAM_STATE = 3 * FLOAT
"""Bytes of a parameter and its two moments in exact Adam."""


def experts_bytes(setup: Setup) -> float:
    """Bytes of a worker's share of the experts with their optimizer; of low-rank experts a worker holds all."""
    if setup.soup.expert_rank:
        return ADAM_STATE * setup.soup.num_experts * setup.factor_size
    name = setup.training.optimizer
    held, _ = bytes_of(name)
    factored = name in MOMENTS and MOMENTS[name].factored_second and setup.soup.num_experts > 0
    return (held * setup.soup.num_experts + FLOAT * factored) * setup.width  # the columns' sums of squares


def router_params(soup: SoupConfig) -> int:
    """Number of parameters of the router, biases included."""
    hidden = soup.router_hidden
    return hidden * (soup.num_domains + 1) + soup.num_experts * (hidden + 1)


def state_bytes(setup: Setup) -> float:
    """Bytes of a worker's state, and so of the copy in CPU memory that a checkpoint is written from."""
    return experts_bytes(setup) + ADAM_STATE * (setup.width + router_params(setup.soup))


def checkpoint_bytes(setup: Setup) -> float:
    """Bytes of a checkpoint on disk, all ranks together; what every rank holds is written once."""
    once = ADAM_STATE * router_params(setup.soup)
    experts = experts_bytes(setup)
    if not setup.soup.expert_rank:
        experts *= setup.num_workers
    return experts + ADAM_STATE * setup.width * setup.num_workers + once


def bank_params(setup: Setup) -> int:
    """Number of shared parameters and of those of all experts (or of their factors)."""
    of_expert = setup.factor_size or setup.size.num_params
    return setup.size.num_params + setup.soup.num_experts * of_expert


def soup_params(setup: Setup) -> int:
    """Number of parameters of the finished soup: the bank and the router."""
    return bank_params(setup) + router_params(setup.soup)


def soup_bytes(setup: Setup) -> float:
    """Bytes of the finished soup on disk, which is float32."""
    return FLOAT * soup_params(setup)


def run_bytes(setup: Setup, checkpoints_kept: int) -> float:
    """Bytes of a run on disk: the checkpoints that are kept, one more that is being written, and the soup."""
    return (checkpoints_kept + 1) * checkpoint_bytes(setup) + soup_bytes(setup)
