"""Finding held-out text that also occurs in training text, wherever either was cut.

Equal passages have equal hashes, but one more line at the head of a document moves all its cuts. So text is also
compared by its runs of words (``word_runs.py``). A passage is *mostly* in other text if that text has at least
``SHARE`` of the passage's runs. A passage that is shorter than a run is only compared as a whole.

Held-out passages that are mostly in training text are dropped, because the model has seen them. Training passages are
not dropped, so boilerplate at the head of all documents cannot empty the training text. There is one exception: the
held-out text that a store already has stays, so documents added to the store lose the training passages that are
mostly such text.

Legend: N texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.passages.word_runs import runs_of
from storage_schema.aside import written_aside
from storage_schema.stage import RunTasks

SHARE = 0.5
"""Measured on the text of a machine's packages with 2% held out: of 3,684 held-out passages, 366 are mostly in the
218,263 training passages with this share, 542 with 0.3 and 226 with 0.7. They are copied modules, generated code and
licences."""
BATCH = 1024
"""Texts processed at once, up to twice as many; of this many, the intermediate arrays stay in a processor's cache."""
AT_ONCE = 1 << 20
"""Runs whose table is made at once."""
_EIGHT, _SEVEN = np.uint64(3), np.uint64(7)
"""To the byte of a bit, and to the bit in it."""
MOST_RUNS = 1 << 26
"""Runs that are looked up: half a gigabyte, and as much for the table that rules others out, both mapped. If there are
more, those with the smallest hashes stand for all."""


@dataclass(frozen=True, kw_only=True)
class Passages:
    """All passages of a file, or those with one decision."""

    path: Path
    decisions: Path | None = None
    """A file with one byte per passage, for this and other files of passages; None for all passages."""
    begin: int = 0
    """Where this file's decisions begin."""
    code: int = 0
    """The decision that is meant (``parts.py``)."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, pa.LargeStringArray, np.ndarray]]:
        """Yield about :data:`BATCH` passages at a time: their rows in the file ``[N]``, their texts, and bool ``[N]``:
        whether a text does *not* continue the one before it.

        The beginning of a document decides where runs end, not the beginning of a file: so it does not matter where a
        large file of the corpus was cut.
        """
        begin = 0
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["document_id", "text"])
                rows = np.arange(len(table))
                if self.decisions is not None:
                    decided = np.fromfile(self.decisions, np.uint8, len(table), offset=self.begin + begin)
                    rows = np.flatnonzero(decided == self.code)
                if len(rows):
                    taken = table.take(pa.array(rows)).combine_chunks()
                    names, texts = (taken[name].chunk(0) for name in ("document_id", "text"))
                    first = np.ones(len(rows), bool)
                    first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
                    first[1:] |= np.diff(rows) != 1
                    begins = np.flatnonzero(first)
                    first = (np.arange(len(rows)) - begins[np.cumsum(first) - 1]) % BATCH == 0
                    for some in _batches(first):
                        yield begin + rows[some], texts[some], first[some]
                begin += len(table)


def _batches(first: np.ndarray) -> Iterator[slice]:
    """Slices of fewer than 2 * :data:`BATCH` texts that begin where `first` is true, at most every ``BATCH``."""
    begins = np.flatnonzero(first)
    last = np.searchsorted(begins, np.arange(0, len(first), BATCH), side="right") - 1
    edges = [*np.unique(begins[last]).tolist(), len(first)]
    return (slice(*ends) for ends in pairwise(edges))


def drop_seen(
    held_out: Sequence[Passages], training: Sequence[Passages], scratch: Path, run: RunTasks
) -> list:
    """For each file of held-out passages, the rows of the passages that are mostly in the training passages.

    Args:
        scratch: a folder to work in.
        run: calls a function with each tuple of arguments.
    """
    known = known_runs(held_out, scratch, run)
    if known is None:
        return [np.empty(0, np.int64) for _ in held_out]
    found = [scratch / f"seen-{number:05d}.npy" for number in range(len(training))]
    run(_write_seen, [(some, known, path) for some, path in zip(training, found, strict=True)])
    marks = scratch / "seen.npy"
    run(_merge_seen, [(found, known, marks)])
    for path in found:
        path.unlink()
    return run(rows_mostly_in, [(some, known, marks) for some in held_out])


def known_runs(passages: Sequence[Passages], scratch: Path, run: RunTasks) -> Path | None:
    """Write the sorted runs of the passages to a file, uint64, and return its path; None if there are no runs."""
    found = [scratch / f"runs-{number:05d}.npy" for number in range(len(passages))]
    run(_write_runs, [(some, path) for some, path in zip(passages, found, strict=True)])
    known = scratch / "known.npy"
    [number] = run(_merge_runs, [(found, known)])
    for path in found:
        path.unlink()
    return known if number else None


def rows_mostly_in(passages: Passages, known: Path, seen: Path | None = None) -> np.ndarray:
    """The rows of the passages that are mostly in other text.

    Args:
        known: the file of the other text's runs.
        seen: a file with one bool per known run; only the marked ones count. None: all count.
    """
    runs = _KnownRuns(known)
    marks = None if seen is None else np.load(seen, mmap_mode="r", allow_pickle=False)
    rows = [np.empty(0, np.int64)]
    for numbers, texts, _ in passages:
        hashes, texts_R = runs_of(texts, np.ones(len(texts), bool))
        comparable = hashes <= runs.last  # larger ones may be in the text, but were not kept in memory
        hashes, texts_R = hashes[comparable], texts_R[comparable]
        which, where = runs.find(hashes)
        if marks is not None:
            which = which[marks[where]]
        all_N, found_N = (np.bincount(some, minlength=len(texts)) for some in (texts_R, texts_R[which]))
        rows.append(numbers[(found_N > 0) & (found_N >= SHARE * all_N)])
    return np.concatenate(rows)


def _write_runs(passages: Passages, path: Path) -> None:
    found = (runs_of(texts, first)[0] for _, texts, first in passages)
    _save(path, _distinct(found, np.uint64))


def _merge_runs(found: Sequence[Path], known: Path) -> int:
    """Write the runs of all these files to one, and return their number: a task, so that the driver holds none."""
    runs = _distinct((np.load(path, allow_pickle=False) for path in found), np.uint64)
    _save(known, runs)
    _save(_beginnings_of(known), _beginnings(runs))
    return len(runs)


def _merge_seen(found: Sequence[Path], known: Path, marks: Path) -> None:
    """Mark the known runs at the positions that all these files hold."""
    seen = np.zeros(len(np.load(known, mmap_mode="r", allow_pickle=False)), bool)
    for path in found:
        seen[np.load(path, allow_pickle=False)] = True
    _save(marks, seen)


def _write_seen(passages: Passages, known: Path, path: Path) -> None:
    """Save the positions, among the known runs, of the runs that the passages have."""
    runs = _KnownRuns(known)
    found = (runs.find(runs_of(texts, first)[0])[1] for _, texts, first in passages)
    _save(path, _distinct(found, np.int64))


def _save(path: Path, array: np.ndarray) -> None:
    with written_aside(path) as aside, open(aside, "wb") as file:
        np.save(file, array)


def _distinct(arrays: Iterable[np.ndarray], dtype: type) -> np.ndarray:
    """The distinct values, sorted, at most the :data:`MOST_RUNS` smallest, without ever holding many equal ones.

    They are sorted again only once as many have come as there are: so the work is linear in their number.
    """
    found: list[np.ndarray] = [np.empty(0, dtype)]
    held = 0
    for array in arrays:
        if len(found[0]) == MOST_RUNS:
            array = array[array < found[0][-1]]
        found.append(array)
        held += len(array)
        if held > max(1 << 20, len(found[0])):
            found, held = [np.unique(np.concatenate(found))[:MOST_RUNS]], 0
    return np.unique(np.concatenate(found))[:MOST_RUNS]


class _KnownRuns:
    """Sorted runs, among which other runs are looked up."""

    def __init__(self, path: Path):
        self.runs = np.load(path, mmap_mode="r", allow_pickle=False)
        self.last = self.runs[-1] if len(self.runs) == MOST_RUNS else np.uint64(2**64 - 1)
        """All runs of the text up to this hash are here; larger ones may be missing."""
        self._beginnings = np.load(_beginnings_of(path), mmap_mode="r", allow_pickle=False)
        self._shift = np.uint64(62 - len(self._beginnings).bit_length())

    def find(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `runs` are known, and their positions among the known ones: two arrays of int64, in no order."""
        first = runs >> self._shift
        maybe = np.flatnonzero(self._beginnings[first >> _EIGHT] >> (first & _SEVEN).astype(np.uint8) & 1)
        maybe = maybe[
            np.argsort(runs[maybe])
        ]  # those that are looked up next to each other lie near each other
        where = np.minimum(np.searchsorted(self.runs, runs[maybe]), len(self.runs) - 1)
        same = self.runs[where] == runs[maybe]
        return maybe[same], where[same]


def _beginnings(known: np.ndarray) -> np.ndarray:
    """Whether a known run has these first bits, one bit per value of them: it rules most other runs out.

    A run that is not ruled out costs a search among all known ones, which do not fit into a cache: of 64 values about
    one is a known run's. It is made once, because all tasks look runs up, and its making takes as long as the runs are
    many.
    """
    bits = (len(known) - 1).bit_length() + 6
    beginnings = np.zeros(1 << (bits - 3), np.uint8)
    for begin in range(0, len(known), AT_ONCE):
        first = known[begin : begin + AT_ONCE] >> np.uint64(64 - bits)
        place, bit = first >> _EIGHT, np.left_shift(1, first & _SEVEN).astype(np.uint8)
        starts = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
        beginnings[place[starts]] |= np.bitwise_or.reduceat(bit, starts)
    return beginnings


def _beginnings_of(known: Path) -> Path:
    return known.with_name("beginnings.npy")
