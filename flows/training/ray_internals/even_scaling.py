"""Elastic training with as many workers as the cluster has, but always a number that divides the batch.

Ray Train's own elastic policy takes any number, so that a rank's share of the batch might not be whole.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from flows.cluster.session import DATA_CPUS
from flows.training.ray_internals.rendezvous import OneAddress


class EvenScalingPolicy(ElasticScalingPolicy):
    """Ray's elastic policy with the world sizes that share a batch evenly."""

    def __init__(self, scaling_config: ScalingConfig, allowed: list[int]):
        super().__init__(scaling_config)
        self.allowed = allowed

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        if not self.scaling_config.use_gpu:
            # If workers took every CPU, none would be left to read their data.
            cores = (self.scaling_config.resources_per_worker or {}).get("CPU", 1)
            for_workers = ray.cluster_resources().get("CPU", 0) - DATA_CPUS
            possible = min(possible, int(for_workers // cores))
        return max((size for size in self.allowed if size <= possible), default=0)


class EvenTorchTrainer(TorchTrainer):
    """A TorchTrainer that runs on one of the `allowed` numbers of workers.

    They find each other at one address (``rendezvous.py``).
    """

    def __init__(self, *args: Any, allowed: list[int], **kwargs: Any):
        super().__init__(*args, torch_config=OneAddress(), **kwargs)
        self._allowed = allowed

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            kwargs["scaling_policy"] = EvenScalingPolicy(self.scaling_config, self._allowed)
        return super()._initialize_and_run_controller(**kwargs)
