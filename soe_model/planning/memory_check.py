"""Checks that a run fits into its workers' memory; if not, finds the nearest settings that do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from soe_model.optimizers import OPTIMIZERS, bytes_of
from soe_model.planning.setup import Setup
from soe_model.planning.state_size import state_bytes
from soe_model.planning.worker_memory import worker_memory
from storage_schema.errors import UserError

GB = 1e9
Fits = Callable[[Setup], bool]


def needed(setup: Setup) -> float:
    """Bytes that a worker needs; on a CPU the copy for a checkpoint lies in the same memory."""
    copy = state_bytes(setup) if setup.device_type == "cpu" else 0
    return sum(worker_memory(setup).values()) + copy


def refuse_what_cannot_fit(setup: Setup, memory: float, *, of: str, workers_there: int = 1) -> None:
    """Raise ValueError, naming the nearest settings that fit, unless each worker has the memory that it needs.

    Args:
        memory: bytes of one GPU, or bytes available on a machine.
        of: the name of the GPU or machine, for the message.
        workers_there: number of workers that share the memory; if it is above 1, more workers are no way out.
    """

    def fits(changed: Setup) -> bool:
        return workers_there * needed(changed) <= memory

    if fits(setup):
        return
    ways = list(_ways_out(setup, fits, more_workers=workers_there == 1 and setup.device_type == "cuda"))
    texts = [" ".join(f"{name}={value}" for name, value in way.items()) for way in ways]
    of_workers = f"{workers_there} workers need" if workers_there > 1 else "a worker needs"
    fewer = ", or fewer workers" if workers_there > 1 and needed(setup) <= memory else ""
    less = "Nor does it fit with one expert: take" if setup.soup.num_experts else "Take"
    too_large = f"{less} a smaller backbone{fewer}."
    way_out = f"Set {'; or '.join(texts)}." if ways else too_large
    raise UserError(
        f"{of_workers} {workers_there * needed(setup) / GB:.1f} GB of memory and {of} has {memory / GB:.1f} GB "
        f"({_largest(setup)} is the most of it). {way_out}"
    )


def share_of_worker(
    machines: Iterable[tuple[float, int]], num_workers: int, *, together: bool
) -> float | None:
    """Bytes that every worker has at least when the workers are spread over the machines in the best way.

    Args:
        machines: bytes of each, and its places for workers.
        together: whether the workers of a machine share its bytes; otherwise each place has them, as with GPUs.

    Returns:
        None if there are fewer places than workers.
    """
    shares = [
        memory / (number if together else 1)
        for memory, places in machines
        for number in range(1, min(places, num_workers) + 1)
    ]
    # A machine of m bytes holds k workers of m / k bytes, and k of its shares here are at least that large.
    return sorted(shares, reverse=True)[num_workers - 1] if len(shares) >= num_workers else None


def _largest(setup: Setup) -> str:
    parts = worker_memory(setup)
    name = max(parts, key=parts.__getitem__)
    return f"{name}, {parts[name] / GB:.1f} GB,"


def _ways_out(setup: Setup, fits: Fits, *, more_workers: bool) -> Iterator[dict[str, Any]]:
    """Settings to change, the nearest first.

    It is the micro-batch alone if that is enough. Otherwise: the optimizer with the next fewer bytes, the fewest more
    workers, and the most experts, each with the largest micro-batch that it allows.
    """
    alone = _largest_micro_batch(setup, fits)
    if alone:
        yield alone[1]
        return
    kinds = [_optimizers(setup), _workers(setup) if more_workers else (), _experts(setup, fits)]
    for changes in kinds:
        for settings, changed in changes:
            found = _largest_micro_batch(changed, fits)
            if found:
                yield settings | found[1]
                break


def _largest_micro_batch(setup: Setup, fits: Fits) -> tuple[Setup, dict[str, Any]] | None:
    """`setup` with the largest micro-batch, halved until it fits, and the changed setting; None if none fits."""
    if fits(setup):
        return setup, {}
    size = setup.micro_batch
    while size > 1:
        size //= 2
        changed = replace(setup, training=replace(setup.training, micro_batch_size=size))
        if fits(changed):
            return changed, {"micro_batch_size": size}
    return None


def _optimizers(setup: Setup) -> Iterator[tuple[dict[str, Any], Setup]]:
    if setup.soup.expert_rank or not setup.soup.num_experts:
        return
    held = {name: bytes_of(name)[0] for name in OPTIMIZERS}
    for name in sorted(held, key=held.__getitem__, reverse=True):
        if held[name] < held[setup.training.optimizer]:
            yield {"optimizer": name}, replace(setup, training=replace(setup.training, optimizer=name))


def _workers(setup: Setup) -> Iterator[tuple[dict[str, Any], Setup]]:
    for number in range(setup.num_workers + 1, setup.training.batch_size + 1):
        if setup.training.batch_size % number == 0:  # with other numbers the shares would be uneven
            yield {"num_workers": number}, replace(setup, num_workers=number)


def _experts(setup: Setup, fits: Fits) -> Iterator[tuple[dict[str, Any], Setup]]:
    """The most experts that fit with micro-batches of one sequence, by bisection."""

    def with_experts(number: int) -> Setup:
        return replace(setup, soup=replace(setup.soup, num_experts=number))

    low, high = 0, setup.soup.num_experts
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if _largest_micro_batch(with_experts(middle), fits) else (low, middle)
    if low:
        yield {"num_experts": low}, with_experts(low)
