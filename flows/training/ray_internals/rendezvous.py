"""Training workers find each other at the first worker's own address, and on no other interface.

torch opens its rendezvous on every interface of the machine, to anybody and without a password, even where all
workers are on loopback. So we open the store that it uses beforehand, on the address that Ray knows.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray._common.network_utils import build_address
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from torch.distributed import TCPStore

_opened: list[TCPStore] = []
"""On the first worker; it lives as long as the process."""


@dataclass
class OneAddress(TorchConfig):
    """Ray's settings of torch, with a rendezvous that listens on one address only."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """As Ray's own, except that the first worker opens the store and then all workers join it."""
        address, port = worker_group.execute_single(0, _open_store, backend_config.timeout_s)
        worker_group.execute(_prepare, address)
        of_group = {
            "backend": backend_config.backend,
            "world_size": len(worker_group),
            "init_method": f"tcp://{build_address(address, port)}",
            "timeout_s": backend_config.timeout_s,
        }
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _setup_torch_process_group, world_rank=rank, **of_group
                )
                for rank in range(len(worker_group))
            ]
        )


def _open_store(timeout_s: int) -> tuple[str, int]:
    """On the first worker: open a store on this node's address, at a free port; returns where."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=1024)
    port = listener.getsockname()[1]
    _opened.append(
        TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )
    )
    return address, port


def _prepare(address: str) -> None:
    """On every worker: join the store that is open, and exchange gradients where it listens."""
    _set_torch_distributed_env_vars()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if ipaddress.ip_address(address).is_loopback:
        # Gloo takes the interface of the machine's name, NCCL the first that is not loopback.
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")
