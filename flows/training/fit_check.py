"""Whether this machine can hold a run, before it starts."""

from __future__ import annotations

from pathlib import Path

from flows.machine_memory import available_memory, memory_of_nodes, smallest_gpu
from flows.training.resolve_run import ResolvedRun
from soe_model.planning.memory_check import refuse_what_cannot_fit, share_of_worker
from soe_model.planning.state_size import run_bytes
from storage_schema.room import bytes_below, require_room

CPU = "cpu"


def check_fits(run: ResolvedRun, *, num_workers: int, use_gpu: bool, cores: int = 1) -> None:
    """Raise ValueError, naming the nearest settings that fit, for a run that the cluster's machines cannot hold.

    On CPUs the workers of a machine share the memory that is available there. With `use_gpu` a worker has a GPU of its
    own. Nothing is checked where the memory is unknown: the workers would run here and torch sees no GPU, or a machine
    does not answer.
    """
    setup = run.setup(num_workers, "cuda" if use_gpu else CPU)
    machines = memory_of_nodes(use_gpu, cores)
    if machines is None:
        print("Not every node says how much memory it has: whether the run fits is not checked.", flush=True)
    elif machines:
        share = share_of_worker(machines, num_workers, together=not use_gpu)
        if share is not None:  # else workers are still to come
            of = f"the least that it finds on the cluster's {len(machines)} machines"
            refuse_what_cannot_fit(setup, share, of=of)
    elif not use_gpu:
        refuse_what_cannot_fit(setup, available_memory(), of="this machine", workers_there=num_workers)
    elif gpu := smallest_gpu():
        refuse_what_cannot_fit(setup, gpu[1], of=gpu[0])


def check_disk(run: ResolvedRun, *, folder: Path, checkpoints_kept: int) -> None:
    """Raise ValueError if the disk of the run's `folder` has no room for what the run will write."""
    setup = run.setup(run.world_sizes[-1], CPU)
    require_room(
        folder,
        run_bytes(setup, checkpoints_kept) - bytes_below(folder),
        what=f"the run with its {checkpoints_kept} checkpoints, the next one and the soup",
        way_out="lower checkpoints_kept or num_experts, or set SOE_HOME to a folder on a larger disk",
    )
