"""The domain partitions of a store.

    <store>/domains/tree.arrow                     coarse nodes, then leaves (tree.py)
    <store>/domains/index.arrow                    one row per domain: passages, tokens
    <store>/domains/domain=0042/part-00000.arrow   one record batch, uncompressed; absent if the domain is empty

The child buffer of a partition's ``tokens`` column *is* the domain's packed token stream: window r of
length L is ``values[r*L : r*L + L + 1]`` (the last token of one window is the first of the next, because
inputs and targets are shifted by one). The incomplete window at the end is never sampled.

Documents added later lie in stores of the same layout beside the first, ``<store>/additions/0001/`` and so
on, with the same tree; nothing written earlier changes. The store as it was built and each addition are the
*volumes* of the store. A domain's windows are those of its partition in each volume, one volume after the other.

Legend: K domains, V volumes, L tokens in a sequence.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage_schema.arrow_files import read_arrow, read_batch
from storage_schema.errors import UserError
from storage_schema.layout import store_and_additions
from storage_schema.manifest import Manifest, StoreError, content_digest, read_manifest
from storage_schema.tree import Tree, with_additions

TOKEN_TYPES = {2: pa.uint16(), 4: pa.uint32()}
INDEX = pa.schema([("domain", pa.int32()), ("passages", pa.int64()), ("tokens", pa.int64())])


def partition_schema(vocab_size: int) -> pa.Schema:
    """Schema of a domain partition; tokens are uint16 where the vocabulary fits, else uint32."""
    token = TOKEN_TYPES[2 if vocab_size <= 1 << 16 else 4]
    return pa.schema(
        [
            pa.field("passage_id", pa.int64(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("distance", pa.float32(), nullable=False),  # to the domain's centroid
            pa.field("tokens", pa.large_list(token), nullable=False),  # each passage ends in end-of-text
        ]
    )


def partition_path(domain: int) -> str:
    """A partition's path relative to the domains folder."""
    return f"domain={domain:04d}/part-00000.arrow"


class DomainVolume:
    """The ``domains`` of one volume (the store as built, or an addition), opened for reading.

    Args:
        folder: the volume's folder (the one that holds ``domains/``).
    """

    def __init__(self, folder: Path):
        self.folder = folder / "domains"
        self.manifest: Manifest = read_manifest(self.folder, "domains")
        self.vocab_size = self._number("vocab_size", 1, 1 << 32)
        self.end_of_text = self._number("end_of_text", 0, self.vocab_size - 1)
        self._schema = partition_schema(self.vocab_size)
        index = read_arrow(self.folder / "index.arrow", INDEX, what="an index of domains")
        self.tokens_K = np.array(index["tokens"])
        self.passages_K = np.array(index["passages"])
        in_order = np.array_equal(index["domain"], np.arange(len(index)))
        if not len(index) or not in_order or min(self.tokens_K.min(), self.passages_K.min()) < 0:
            raise StoreError(
                f"{self.folder / 'index.arrow'} is not an index of domains 0, 1, 2 ... with their numbers of passages "
                "and tokens. Rebuild the store."
            )

    def windows_K(self, sequence_length: int) -> np.ndarray:
        """int64[K]: complete windows of `sequence_length` tokens (plus one) in each domain's partition."""
        return np.maximum(self.tokens_K - 1, 0) // sequence_length

    def batch(self, domain: int, *, full: bool = False) -> pa.RecordBatch:
        """The domain's passages (columns of :func:`partition_schema`), memory-mapped.

        Raises :class:`StoreError` naming the domain and file if the file is missing, truncated, or not a partition.
        """
        try:
            path = self.folder / partition_path(domain)
            return read_batch(path, self._schema, what="a domain partition", full=full)
        except StoreError as error:
            raise StoreError(f"domain {domain}: {error}") from error

    def tokens(self, domain: int) -> np.ndarray:
        """The domain's packed token stream, memory-mapped, read-only (uint16 or uint32).

        Raises :class:`StoreError` naming the domain and file if the file is missing, truncated, not a partition, or
        not of the length in the index.
        """
        path = self.folder / partition_path(domain)
        try:
            values = self.batch(domain).column("tokens").values.to_numpy(zero_copy_only=True)
        except pa.ArrowInvalid as error:
            raise StoreError(f"domain {domain}: cannot read {path}: {error}") from error
        if len(values) != self.tokens_K[domain]:
            raise StoreError(
                f"domain {domain}: {path} holds {len(values)} tokens, the index says {self.tokens_K[domain]}. "
                "Rebuild the store."
            )
        return values

    def _number(self, name: str, least: int, most: int) -> int:
        """A whole number from the manifest's configuration. Raises :class:`StoreError` if it is not in the range."""
        found = self.manifest.configuration.get(name)
        if type(found) is not int or not least <= found <= most:
            raise StoreError(
                f"the manifest of {self.folder} says {name} {found!r:.40}; it must be a whole number from {least} to "
                f"{most}. Rebuild the store."
            )
        return found


class DomainStore:
    """The finished domains of one store and its additions, opened for reading.

    Args:
        folder: the store's folder (the one that holds ``domains/``).
        num_volumes: open the store as it was when it had this many volumes; None for all of them.

    Raises:
        StoreError: there are no finished domains, or an addition is of another tree.
    """

    def __init__(self, folder: str | Path, *, num_volumes: int | None = None):
        self.volumes = [DomainVolume(volume) for volume in store_and_additions(folder)[:num_volumes]]
        first = self.volumes[0]
        self.folder, self.manifest = first.folder, first.manifest
        for volume in self.volumes[1:]:
            same = len(volume.tokens_K) == len(first.tokens_K) and volume.vocab_size == first.vocab_size
            if not same or volume.manifest.inputs.get("tree") != first.manifest.digest:
                raise StoreError(
                    f"{volume.folder.parent} was added to other domains than those of {self.folder}. Remove it, "
                    "and add its documents again."
                )
        self.tokens_K = np.sum([volume.tokens_K for volume in self.volumes], axis=0)
        self.passages_K = np.sum([volume.passages_K for volume in self.volumes], axis=0)

    @property
    def num_domains(self) -> int:
        return len(self.tokens_K)

    @property
    def vocab_size(self) -> int:
        return self.volumes[0].vocab_size

    @property
    def token_dtype(self) -> np.dtype:
        """uint16 where the vocabulary fits, else uint32."""
        field = partition_schema(self.vocab_size).field("tokens")
        return np.dtype(field.type.value_type.to_pandas_dtype())

    @property
    def end_of_text(self) -> int:
        """Id of the token that ends a passage."""
        return self.volumes[0].end_of_text

    @property
    def digest(self) -> str:
        """The digest of all volumes; it changes with every addition."""
        return self.digests[-1]

    @cached_property
    def digests(self) -> list[str]:
        """The store's digest as it was with its first volume, its first two, and so on."""
        of_volume = [volume.manifest.digest for volume in self.volumes]
        return [of_volume[0], *(content_digest(of_volume[:n]) for n in range(2, len(of_volume) + 1))]

    @cached_property
    def tree(self) -> Tree:
        trees = [Tree.read(volume.folder / "tree.arrow") for volume in self.volumes]
        for volume, tree in zip(self.volumes, trees, strict=True):
            if tree.leaves_KD.shape != (self.num_domains, trees[0].leaves_KD.shape[1]):
                raise StoreError(
                    f"{volume.folder / 'tree.arrow'} has {tree.num_domains} domains of size {tree.leaves_KD.shape[1]}; "
                    f"the index has {self.num_domains}. Rebuild the store."
                )
        return with_additions(trees)

    def windows_K(self, sequence_length: int) -> np.ndarray:
        """int64[K]: complete windows of `sequence_length` tokens (plus one) in each domain."""
        if sequence_length < 1:
            raise UserError(f"sequence_length is {sequence_length}; it must be at least 1.")
        return np.sum([volume.windows_K(sequence_length) for volume in self.volumes], axis=0)

    def passages(self, domain: int) -> pa.Table:
        """The domain's passages (columns of :func:`partition_schema`), memory-mapped, one chunk per volume.

        Raises :class:`StoreError` as :meth:`DomainVolume.batch` does.
        """
        batches = [volume.batch(domain, full=True) for volume in self.volumes if volume.passages_K[domain]]
        return pa.Table.from_batches(batches, partition_schema(self.vocab_size))


class MappedPartition:
    """One partition's tokens, memory-mapped until :meth:`unmap`, and the state of its file when it was opened.

    Raises:
        StoreError: as :meth:`DomainVolume.tokens` does.
    """

    def __init__(self, volume: DomainVolume, domain: int):
        self._path, self._volume, self._domain = str(volume.folder / partition_path(domain)), volume, domain
        self._file = self._state()
        self.values: np.ndarray | None = volume.tokens(domain)

    def map(self) -> np.ndarray:
        """The tokens, mapped again if they were unmapped. Raises :class:`StoreError` as :meth:`check` does."""
        if self.values is None:
            self.check()
            self.values = self._volume.tokens(self._domain)
        return self.values

    def unmap(self) -> None:
        """Drop this object's reference to the mapping. Arrays that others hold stay valid."""
        self.check()
        self.values = None

    def check(self) -> None:
        """Raise :class:`StoreError` if the file is no longer the one that was opened."""
        if self._state() != self._file:
            raise StoreError(
                f"domain {self._domain}: {self._path} was changed or replaced while it was read. Was the store "
                "rebuilt? Audit it (soe audit), and resume."
            )

    def _state(self) -> tuple[int, int, int] | None:
        """Inode, size and time of change; None if the file is missing."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
