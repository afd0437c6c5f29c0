"""The domain partitions of a store.

    <store>/domains/tree.arrow        coarse nodes, then leaves (tree.py)
    <store>/domains/index.arrow       one row per domain: passages, tokens, and where they lie
    <store>/domains/node-0042.arrow   a coarse node's domains, one uncompressed record batch each; none if empty

The child buffer of a partition's ``tokens`` column *is* the domain's packed token stream: window r of
length L is ``values[r*L : r*L + L + 1]`` (the last token of one window is the first of the next, because
inputs and targets are shifted by one). The incomplete window at the end is never sampled.

Documents added later lie in stores of the same layout beside the first, ``<store>/additions/0001/`` and so
on, with the same tree; nothing written earlier changes. The store as it was built and each addition are the
*volumes* of the store. A domain's windows are those of its partition in each volume, one volume after the other.

Schema version 1 had one file per domain, ``domain=0042/part-00000.arrow``, and no places in the index.

Legend: K domains, V volumes, L tokens in a sequence.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage_schema.arrow_files import (
    MappedFile,
    errors_name,
    place_of_values,
    read_arrow,
    read_batch,
    values_are_at,
)
from storage_schema.errors import UserError
from storage_schema.layout import store_and_additions
from storage_schema.manifest import Manifest, StoreError, content_digest, read_manifest
from storage_schema.tree import Tree, with_additions

TOKEN_TYPES = {2: pa.uint16(), 4: pa.uint32()}
_FIRST_INDEX = pa.schema([("domain", pa.int32()), ("passages", pa.int64()), ("tokens", pa.int64())])
INDEX = pa.schema([*_FIRST_INDEX, ("file", pa.int32()), ("tokens_at", pa.int64())])
"""The last two: the number of the coarse node's file, and the byte of it at which the token stream begins."""


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


PARTITIONS = "node-", "domain="
"""How the names of files with partitions begin, now and in schema version 1."""


def partition_path(file: int) -> str:
    """The path of a coarse node's file relative to the domains folder."""
    return f"node-{file:04d}.arrow"


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
        self._sizes = {entry.path: entry.bytes for entry in self.manifest.files}
        self.file_per_domain = self.manifest.schema_version == 1
        schema = _FIRST_INDEX if self.file_per_domain else INDEX
        index = read_arrow(self.folder / "index.arrow", schema, what="an index of domains")
        numbers = np.arange(len(index))
        self.tokens_K = np.array(index["tokens"])
        self.passages_K = np.array(index["passages"])
        self.file_K = numbers if self.file_per_domain else np.array(index["file"], np.int64)
        """The number of the file that each domain lies in; neighbouring domains share one."""
        self.tokens_at_K = numbers * 0 if self.file_per_domain else np.array(index["tokens_at"])
        in_order = np.array_equal(index["domain"], numbers) and (np.diff(self.file_K) >= 0).all()
        least = min(np.min(column, initial=0) for column in index.columns)
        if not len(index) or not in_order or least < 0 or self.file_K[-1] >= len(index):
            raise StoreError(
                f"{self.folder / 'index.arrow'} is not an index of domains 0, 1, 2 ... with their numbers of passages "
                "and tokens, and their places. Rebuild the store."
            )

    def windows_K(self, sequence_length: int) -> np.ndarray:
        """int64[K]: complete windows of `sequence_length` tokens (plus one) in each domain's partition."""
        return np.maximum(self.tokens_K - 1, 0) // sequence_length

    def name(self, file: int) -> str:
        """The path of the file of that number, relative to the domains folder."""
        return f"domain={file:04d}/part-00000.arrow" if self.file_per_domain else partition_path(file)

    def size(self, name: str) -> int:
        """The size in the manifest of a file. Raises :class:`StoreError` if the manifest lacks it."""
        if name not in self._sizes:
            raise StoreError(
                f"the manifest of {self.folder} has no {name}, but its index has. Rebuild the store."
            )
        return self._sizes[name]

    def batch(self, domain: int, *, full: bool = False) -> pa.RecordBatch:
        """The domain's passages (columns of :func:`partition_schema`), memory-mapped.

        Raises :class:`StoreError` naming the domain and file if the file is missing, truncated, or not a partition.
        """
        file, what = self.file_K[domain], "a file of domains"
        first, end = np.searchsorted(self.file_K, (file, file + 1)).tolist()
        at, path = domain - first, self.folder / self.name(file)
        try:
            return read_batch(path, self._schema, number=at, of=end - first, what=what, full=full)
        except StoreError as error:
            raise StoreError(f"domain {domain}: {error}") from error

    def mapped(self, file: int) -> MappedFile:
        """The file of that number, memory-mapped. Raises :class:`StoreError` as :class:`MappedFile` does."""
        return MappedFile(self.folder / self.name(file), self.size(self.name(file)))

    def tokens(self, domain: int, mapped: MappedFile | None = None) -> np.ndarray:
        """The domain's packed token stream, memory-mapped, read-only (uint16 or uint32).

        Args:
            mapped: the domain's file, if it is mapped already.

        Raises:
            StoreError: as :class:`MappedFile` does, or the stream does not lie where the index says.
        """
        mapped = mapped or self.mapped(int(self.file_K[domain]))
        buffer, count = mapped.buffer, int(self.tokens_K[domain])
        kind = np.dtype(self._schema.field("tokens").type.value_type.to_pandas_dtype())
        at = int(self.tokens_at_K[domain])
        if self.file_per_domain:
            self.batch(domain)  # checks the file
            with errors_name(mapped.path):
                at = place_of_values(pa.ipc.open_file(buffer).get_batch(0)["tokens"], buffer)
        if not values_are_at(at, count, kind.itemsize, buffer.size, mapped.read):
            raise StoreError(
                f"domain {domain}: {mapped.path} does not hold its {count} tokens where they should be. Rebuild it."
            )
        return np.frombuffer(buffer, kind, count, at)

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
