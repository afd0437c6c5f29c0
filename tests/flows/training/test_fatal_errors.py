"""Which errors end a run for good, and how they are told."""

import numpy as np
import ray
import torch

from flows.training import fatal_errors as endings


def test_what_is_out_of_memory():
    class WorkerGroupError(RuntimeError):
        worker_failures = {0: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")}

    class Killed(RuntimeError):
        health_check_failure = ray.exceptions.OutOfMemoryError("the node is running low on memory")

    assert endings.is_out_of_memory(WorkerGroupError("rank 0"))
    assert endings.is_out_of_memory(Killed("rank 0"))
    assert endings.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not endings.is_out_of_memory(RuntimeError("the stream gave step 3"))
    assert not endings.is_out_of_memory(OSError("not enough memory cards"))


def test_a_message_names_the_heaviest_domains():
    weights_WK = np.full((1, 20), 0.01)
    weights_WK[0, 7] = 0.5
    message = endings.not_finite(3, [0], weights_WK, "loss nan.")
    assert "mixture 0 of domains 7 (0.5), 0 (0.01)" in message and "and 12 more" in message
    alone = endings.not_finite(3, [], weights_WK, "loss nan, of mixtures [] and the generic instance.")
    assert "no mixture alone." in alone and "these domains" not in alone
