"""From the plan to token batches: the same batches through Ray Data or in this process.

Ray Data moves blocks of steps. A block holds this rank's slots of `block_steps` consecutive steps, read by an actor
from memory-mapped partitions, so many steps share Ray's cost per block. Every row carries its step and slot, and the
consumer checks them: a wrong order is an error, never a silent shuffle.

Ray Data prepares every task of a dataset when it starts, so one task makes many blocks, one after the other.

Legend: B slots of one rank in a step, L tokens in a sequence, W mixtures per step, K domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.mixtures.plan import MixturePlan, Steps
from pipeline.remote.store import open_store
from pipeline.stream.begun import Begun
from pipeline.stream.window_reader import window_reader
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError

BLOCK_BYTES = 16 << 20
BLOCKS_AHEAD = 8
"""How many blocks a task may make before they are taken. With Ray Data's default, 2, the fetcher has to wait."""
TASK_BLOCKS = 64
"""Blocks that one Ray task makes: a run of a million steps has a few hundred tasks."""
FETCHER_CPUS = 0.01
"""Almost nothing, because the fetchers of all ranks must run at the same time: a rank without data holds up the others,
and a machine with N workers may have only one more logical CPU."""
PRESERVE_ORDER = True
"""Ray Data's default is False, which gives blocks in the order in which they are finished."""


class StreamError(RuntimeError):
    """A batch arrived that is not the plan's next one."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's slots of one step."""

    step: int
    tokens_BL1: np.ndarray
    """The store's token type (uint16 or uint32); may be read-only."""
    mixture_B: np.ndarray
    """int64; the mixture that each slot belongs to, ascending."""
    domain_weights_WK: np.ndarray
    """float32; the weights of all mixtures of the step, the same on every rank."""


@dataclass(frozen=True, kw_only=True)
class MixtureStream:
    """Batches of a plan from any step on, for one rank of any number of ranks.

    It can be pickled: it holds only the store's place, and partitions are opened where they are read.
    """

    store_folder: str
    """A path, or an ``s3://`` URI."""
    sequence_length: int
    plan: MixturePlan
    rank: int = 0
    world_size: int = 1
    fetchers: int = 1
    """Ray actors that read partitions for this rank."""
    store_parts: int | None = None
    """The plan is for the store with this many volumes: a run does not see documents that are added while it runs."""
    window_steps: int | None = None
    """Steps in a block. None: as many as make about 16 MB of tokens of two bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"there is no rank {self.rank} of {self.world_size}; ranks count from 0.")
        planned = self.plan.facts["sequence_length"]
        if planned not in (0, self.sequence_length):
            raise UserError(
                f"the plan is of windows of {planned} tokens, and the stream reads {self.sequence_length}. Give both "
                "the same."
            )
        if self.plan.batch_size % self.world_size:
            raise UserError(
                f"batch_size {self.plan.batch_size} is not a multiple of the {self.world_size} workers. Change one of "
                "them."
            )
        if self.window_steps is not None and self.window_steps < 1:
            raise UserError(f"window_steps is {self.window_steps}; a block holds at least one step.")

    def open_store(self) -> DomainStore:
        """Open the store that the plan is for. Raises StoreError if another store lies there now."""
        store = open_store(self.store_folder, num_volumes=self.store_parts)
        planned = self.plan.facts["store"]
        if planned and store.digest != planned:
            raise StoreError(
                f"{self.store_folder} is no longer the store that this run's plan is of ({store.digest[:12]}, planned "
                f"{planned[:12]}): it was rebuilt. Put the former one back, or begin a run of another name."
            )
        return store

    @property
    def share(self) -> int:
        """Slots of one rank in a step."""
        return self.plan.batch_size // self.world_size

    @property
    def slots(self) -> slice:
        """This rank's slots of the global batch."""
        return slice(self.rank * self.share, (self.rank + 1) * self.share)

    @property
    def block_steps(self) -> int:
        """Steps in a block."""
        if self.window_steps is not None:
            return self.window_steps
        return int(np.clip(BLOCK_BYTES // (2 * self.share * (self.sequence_length + 1)), 16, 256))

    def for_rank(self, rank: int, world_size: int) -> MixtureStream:
        """The same stream for another `rank` of `world_size` ranks."""
        return replace(self, rank=rank, world_size=world_size)

    def in_process(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps [start, stop) without Ray; the reference for :meth:`through_ray`."""
        yield from self._fetched(Fetch(self), start, stop)

    def _fetched(self, fetch: Fetch, start: int, stop: int) -> Iterator[Batch]:
        for first in range(start, stop, self.block_steps):
            steps = self.plan.steps(first, min(first + self.block_steps, stop), self.slots)
            yield from self._batches(fetch.tokens(steps), steps)
        fetch.reader.finish()

    def through_ray(self, start: int, stop: int) -> Iterator[Batch]:
        """The same batches, fetched ahead by Ray Data actors. Call it in a Ray process.

        The first block is read in this process, so that the first batches are ready while Ray Data starts.

        Raises:
            StreamError: a batch arrived out of order, or the stream ended too early.
            StoreError: a partition is missing, damaged, or was changed.
        """
        head = min(start + self.block_steps, stop)
        fetch = Fetch(self)
        token_bytes = fetch.reader.store.token_dtype.itemsize
        rest = Begun(lambda: self._tables(head, stop, token_bytes)) if head < stop else ()
        yield from self._fetched(fetch, start, head)
        first = head
        for table in rest:
            tokens = self._checked(table, first, stop)
            last = first + len(table) // self.share
            yield from self._batches(tokens, self.plan.steps(first, last, slice(0)))
            first = last
        if first < stop:
            raise StreamError(f"the stream ended at step {first}, before step {stop}.")

    def _tables(self, start: int, stop: int, token_bytes: int) -> Iterator[pa.Table]:
        """The blocks of the steps [start, stop) in order, from Ray Data."""
        import ray
        from ray.data import ActorPoolStrategy

        blocks = -(-(stop - start) // self.block_steps)
        # Not ray.data.range, which makes the numbers in tasks that each need a whole CPU.
        dataset = ray.data.from_items(list(range(blocks)), override_num_blocks=-(-blocks // TASK_BLOCKS))
        dataset.context.execution_options.preserve_order = PRESERVE_ORDER
        dataset.context._max_num_blocks_in_streaming_gen_buffer = BLOCKS_AHEAD
        # Ray closes a block at the target size and cuts up one of 1.5 times that size, so each of ours stays one block.
        dataset.context.target_max_block_size = int(
            0.9 * self.block_steps * self.share * self._row_bytes(token_bytes)
        )
        dataset.context.raise_original_map_exception = True
        dataset.context.enable_progress_bars = False
        dataset = dataset.map_batches(
            Fetch,
            fn_constructor_args=(self, start, stop),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self.fetchers),
            num_cpus=FETCHER_CPUS,
            udf_modifying_row_count=True,
        )
        return iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))

    def _row_bytes(self, token_bytes: int) -> int:
        """The bytes of one slot in a block: its tokens, its step and its number."""
        return (self.sequence_length + 1) * token_bytes + 8 + 4

    def _checked(self, table: pa.Table, first: int, stop: int) -> np.ndarray:
        """The tokens ``[rows, L + 1]`` of a block. Raises StreamError unless it holds all slots of whole steps from
        `first` on, in order.
        """
        steps, over = divmod(len(table), self.share)
        last = first + steps
        found_step, found_slot = np.asarray(table["step"]), np.asarray(table["slot"])
        if (
            over
            or last > stop
            or not np.array_equal(found_step, np.repeat(np.arange(first, last), self.share))
            or not np.array_equal(found_slot, np.tile(np.arange(self.slots.start, self.slots.stop), steps))
        ):
            raise StreamError(
                f"expected whole steps in order from {first} on, rank {self.rank} of {self.world_size} received "
                f"{len(table)} rows of steps {found_step.min()} to {found_step.max()}."
            )
        return table["tokens"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)

    def _batches(self, tokens: np.ndarray, steps: Steps) -> Iterator[Batch]:
        """The tokens of one block, ``[steps * B, L + 1]``, as batches."""
        tokens = tokens.reshape(-1, self.share, self.sequence_length + 1)
        mixture_B = self.plan.mixture_of_slot()[self.slots]
        weights_WK = None
        for step, tokens_BL1 in enumerate(tokens, start=steps.start):
            if weights_WK is None or not steps.constant:
                weights_WK = steps.domain_weights(step, self.plan.num_domains).astype(np.float32)
            yield Batch(step=step, tokens_BL1=tokens_BL1, mixture_B=mixture_B, domain_weights_WK=weights_WK)


class Fetch:
    """Reads blocks of steps. It is a pure function of its input, so Ray may call it again."""

    def __init__(self, stream: MixtureStream, start: int = 0, stop: int = 0):
        self.stream, self.start, self.stop = stream, start, stop
        self.reader = window_reader(stream.open_store(), stream.sequence_length)

    def tokens(self, steps: Steps) -> np.ndarray:
        """The tokens of this rank's slots in these steps: ``[steps * B, L + 1]``."""
        return self.reader.read(steps.domain_TB.reshape(-1), steps.row_TB.reshape(-1))

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Make the blocks whose numbers are the rows of `block`."""
        block_steps, slots = self.stream.block_steps, self.stream.slots
        for number in block["item"].to_pylist():
            first = self.start + number * block_steps
            last = min(first + block_steps, self.stop)
            tokens = self.tokens(self.stream.plan.steps(first, last, slots))
            yield pa.table(
                {
                    "step": np.repeat(np.arange(first, last), self.stream.share),
                    "slot": np.tile(np.arange(slots.start, slots.stop, dtype=np.int32), last - first),
                    "tokens": pa.FixedSizeListArray.from_arrays(tokens.reshape(-1), tokens.shape[1]),
                }
            )
        self.reader.finish()
