"""From the plan to token batches: the same windows through Ray Data, or in process.

Ray Data runs windows of steps: one block holds this rank's slots of `window` consecutive steps, fetched by
an actor from memory-mapped partitions, so Ray's cost per block is shared by many steps. Every row carries
its step and slot and the consumer checks them: a wrong order is an error, never a silent shuffle.

Legend: B slots of one rank in a step, L tokens in a sequence, W mixtures a step, K domains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.mixtures import MixturePlan
from storage_schema.domains import DomainStore

OPEN_PARTITIONS = 64
"""Partitions a fetcher keeps mapped; a sparse mixture touches only a few."""
BLOCK_BYTES = 8 << 20


class StreamError(RuntimeError):
    """A batch arrived out of its place in the plan."""


class WindowReader:
    """Reads windows of a store's partitions, keeping the last few mapped."""

    def __init__(self, store: DomainStore, sequence_length: int):
        self.store, self.sequence_length = store, sequence_length
        self._open: OrderedDict[int, list[np.ndarray]] = OrderedDict()

    def read(self, domains: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Windows `rows` of `domains`: [len(rows), L + 1] of the store's token type."""
        length = self.sequence_length
        out = None
        for domain in np.unique(domains):
            places, first = np.flatnonzero(domains == domain), 0
            for windows_n1 in self._windows(int(domain)):
                if out is None:
                    out = np.empty((len(rows), length + 1), dtype=windows_n1.dtype)
                inside = (rows[places] >= first) & (rows[places] < first + len(windows_n1))
                out[places[inside]] = windows_n1[rows[places[inside]] - first]
                first += len(windows_n1)
            if rows[places].max() >= first:
                raise IndexError(f"domain {domain} has {first} windows; row {rows[places].max()} is none.")
        return out

    def _windows(self, domain: int) -> list[np.ndarray]:
        if domain in self._open:
            self._open.move_to_end(domain)
        else:
            if len(self._open) >= OPEN_PARTITIONS:
                self._open.popitem(last=False)
            self._open[domain] = self.store.windows(domain, self.sequence_length)
        return self._open[domain]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's slots of one step."""

    step: int
    tokens_BL1: np.ndarray
    """int64."""
    mixture_B: np.ndarray
    """int64; the mixture each slot belongs to, ascending."""
    domain_weights_WK: np.ndarray
    """float32; of all mixtures of the step, on every rank."""


@dataclass(frozen=True, kw_only=True)
class MixtureStream:
    """Batches of a plan from any step on, for one rank of any number of them.

    Picklable: only the store's path travels, partitions are opened where they are read.
    """

    store_folder: str
    sequence_length: int
    plan: MixturePlan
    rank: int = 0
    world_size: int = 1
    fetchers: int = 1
    """Ray actors that read partitions for this rank."""
    store_parts: int | None = None
    """The plan is of the store with so many parts: what is added during a run is not seen by it."""

    def __post_init__(self):
        if self.plan.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.plan.batch_size} is not a multiple of the {self.world_size} workers."
            )

    def open_store(self) -> DomainStore:
        """The store that the plan is of."""
        return DomainStore(self.store_folder, num_parts=self.store_parts)

    @property
    def slots(self) -> slice:
        """This rank's slots of the global batch."""
        share = self.plan.batch_size // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    @property
    def window(self) -> int:
        """Steps in a block: about 8 MB of tokens."""
        share = self.plan.batch_size // self.world_size
        return int(np.clip(BLOCK_BYTES // (2 * share * (self.sequence_length + 1)), 16, 256))

    def for_rank(self, rank: int, world_size: int) -> MixtureStream:
        """The same stream as seen by `rank` of `world_size`."""
        return replace(self, rank=rank, world_size=world_size)

    def in_process(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps [start, stop) without Ray: the reference."""
        fetch = _Fetch(self)
        for first in range(start, stop, self.window):
            last = min(first + self.window, stop)
            yield from self._checked(fetch.table(first, last), first, last)

    def through_ray(self, start: int, stop: int) -> Iterator[Batch]:
        """The same batches, fetched ahead by Ray Data actors; to be called in a Ray process."""
        import ray
        from ray.data import ActorPoolStrategy

        firsts = range(start, stop, self.window)
        dataset = ray.data.range(len(firsts), override_num_blocks=len(firsts))
        dataset.context.execution_options.preserve_order = True
        dataset.context.target_max_block_size = None  # one window is one block
        dataset.context.enable_progress_bars = False
        dataset = dataset.map_batches(
            _Fetch,
            fn_constructor_args=(self, start, stop),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self.fetchers),
            num_cpus=0.25,
            udf_modifying_row_count=True,
        )
        expected = iter(firsts)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            first = next(expected, None)
            if first is None:
                raise StreamError(f"more batches than the {stop - start} steps of the plan.")
            yield from self._checked(table, first, min(first + self.window, stop))
        if next(expected, None) is not None:
            raise StreamError(f"the stream ended before step {stop}.")

    def _checked(self, table: pa.Table, first: int, last: int) -> Iterator[Batch]:
        """Split one window's table into batches, checking each row's step and slot."""
        slots = np.arange(self.slots.start, self.slots.stop)
        found_step, found_slot = np.asarray(table["step"]), np.asarray(table["slot"])
        expected_step = np.repeat(np.arange(first, last), len(slots))
        if not (
            np.array_equal(found_step, expected_step)
            and np.array_equal(found_slot, np.tile(slots, last - first))
        ):
            raise StreamError(
                f"expected steps {first} to {last - 1} in order, rank {self.rank} of {self.world_size} received "
                f"{len(found_step)} rows of steps {found_step.min()} to {found_step.max()}."
            )
        column = table["tokens"].combine_chunks()
        tokens = column.flatten().to_numpy().reshape(last - first, len(slots), self.sequence_length + 1)
        steps, mixture_B = self.plan.steps(first, last), self.plan.mixture_of_slot()[self.slots]
        for step, tokens_BL1 in enumerate(tokens, start=first):
            yield Batch(
                step=step,
                tokens_BL1=tokens_BL1.astype(np.int64),
                mixture_B=mixture_B,
                domain_weights_WK=steps.domain_weights(step, self.plan.num_domains).astype(np.float32),
            )


class _Fetch:
    """Makes the table of one window of steps. A pure function of its input, so Ray may retry it."""

    def __init__(self, stream: MixtureStream, start: int = 0, stop: int = 0):
        self.stream, self.start, self.stop = stream, start, stop
        self.reader = WindowReader(stream.open_store(), stream.sequence_length)

    def table(self, first: int, last: int) -> pa.Table:
        steps, slots = self.stream.plan.steps(first, last), self.stream.slots
        share = slots.stop - slots.start
        tokens = self.reader.read(steps.domain_TB[:, slots].reshape(-1), steps.row_TB[:, slots].reshape(-1))
        return pa.table(
            {
                "step": np.repeat(np.arange(first, last), share),
                "slot": np.tile(np.arange(slots.start, slots.stop, dtype=np.int32), last - first),
                "tokens": pa.FixedSizeListArray.from_arrays(tokens.reshape(-1), tokens.shape[1]),
            }
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """One block of ``ray.data.range`` holds the number of one window."""
        window = self.stream.window
        tables = []
        for number in block["id"].to_pylist():
            first = self.start + number * window
            tables.append(self.table(first, min(first + window, self.stop)))
        return pa.concat_tables(tables)
