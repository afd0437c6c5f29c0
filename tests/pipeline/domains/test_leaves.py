"""A coarse node's rows, dealt out to its leaves."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.domains import leaves
from pipeline.domains.leaves import _split, _write_partitions, write_node
from pipeline.domains.scatter import Folders, scatter_schema, write_batch
from storage_schema.arrow_files import read_batch
from storage_schema.aside import remove_asides
from storage_schema.domains import partition_schema

LEAVES, FIRST = 100, 700


@contextmanager
def few_more_files(number):
    """So many more files may be opened in the block."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (descriptor for descriptor in count() if descriptor not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, number, None)), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def rows_of(leaf_N, first_id):
    """Rows of 1 to 9 tokens each."""
    lengths = 1 + np.arange(len(leaf_N)) % 9
    edges = np.concatenate([[0], np.cumsum(lengths)])
    columns = [
        pa.array(first_id + np.arange(len(leaf_N))[::-1]),
        pa.array([f"d{number}" for number in range(len(leaf_N))]),
        pa.array(["s"] * len(leaf_N)),
        pa.array(np.linspace(0, 1, len(leaf_N), dtype=np.float32)),
        pa.LargeListArray.from_arrays(pa.array(edges), pa.array(np.arange(edges[-1]).astype(np.uint16))),
        pa.array(FIRST + leaf_N),
    ]
    return pa.table(columns, schema=scatter_schema(1000))


def test_a_node_of_many_leaves_needs_few_open_files(tmp_path):
    generator = np.random.Generator(np.random.PCG64(0))
    leaf_PN = [generator.integers(0, LEAVES - 1, 300) for _ in range(3)]  # nothing falls into the last leaf
    tables = [rows_of(leaf_N, 1000 * part) for part, leaf_N in enumerate(leaf_PN)]
    path = tmp_path / "by-leaf.arrow"
    with few_more_files(12):
        readers = [lambda table=table: table for table in tables]
        sums, leaf_of_batch = _split(readers, FIRST, LEAVES, path)
    rows = pa.concat_tables(tables)
    leaf_N = np.concatenate(leaf_PN)
    assert np.array_equal(sums["counts_k"], np.bincount(leaf_N, minlength=LEAVES))
    assert LEAVES - 1 not in leaf_of_batch
    out = tmp_path / "node.arrow"
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        batches = [np.flatnonzero(leaf_of_batch == leaf) for leaf in range(LEAVES)]
        _write_partitions(out, (list(map(file.get_batch, some)) for some in batches), file.schema)
    for leaf in range(LEAVES):
        found = read_batch(
            out, partition_schema(1000), number=leaf, of=LEAVES, what="a file of domains", full=True
        )
        expected = rows.take(np.flatnonzero(leaf_N == leaf)).sort_by("passage_id")
        for name in ("passage_id", "document_id", "source", "tokens"):
            assert found.column(name).to_pylist() == expected[name].to_pylist()
        assert sums["tokens_k"][leaf] == len(found.column("tokens").values)


def test_a_node_of_many_parts_has_one_mapped_at_a_time(tmp_path, monkeypatch):
    """A process may have 65,530 mappings; a corpus of 10^9 passages has more parts."""
    folders = Folders(passages="", embeddings="", tokenizer="", work=str(tmp_path))
    folders.scratch.mkdir()
    schema, rows_PC = scatter_schema(300), np.array([[2, 0, 3], [0, 0, 0], *[[1, 4, 0]] * 60], np.int64)
    number = 0
    names = [f"part-{part:05d}" for part in range(len(rows_PC))]
    for name, rows_C in zip(names, rows_PC.tolist(), strict=True):
        ids = range(number, number := number + sum(rows_C))
        columns = [
            list(ids),
            ["d"] * len(ids),
            ["s"] * len(ids),
            [0.5] * len(ids),
            [[n % 300, 0] for n in ids],
        ]
        columns.append((2 * np.repeat(np.arange(3), rows_C) + np.array(ids, np.int64) % 2).tolist())
        batch = pa.record_batch(dict(zip(schema.names, columns, strict=True)))
        write_batch(folders.scattered(name), batch.cast(schema), rows_C)
    mapped = []

    def look(real, *arguments, **options):
        mapped.append(sum(str(tmp_path) in line for line in Path("/proc/self/maps").open()))
        return real(*arguments, **options)

    monkeypatch.setattr(leaves.np, "square", partial(look, np.square))  # with a part's rows at hand
    found = [write_node(folders, node, (names, rows_PC), 2) for node in range(3)]
    assert len(mapped) > 100 and max(mapped) <= 2
    assert [int(node["counts_k"].sum()) for node in found] == rows_PC.sum(0).tolist()
    ids = [
        pa.ipc.open_file(str(path)).read_all()["passage_id"].to_pylist() for path in tmp_path.glob("node-*")
    ]
    assert sorted(sum(ids, [])) == list(range(number))
    again = write_node(folders, 0, ([], np.zeros((0, 3))), 2)  # it is done
    assert again["counts_k"].tolist() == found[0]["counts_k"].tolist()


def test_a_node_that_fails_leaves_none_of_its_rows_behind(tmp_path, monkeypatch):
    """A node's rows are gigabytes. Those of a killed task are removed with all files of writers that are gone."""
    folders = Folders(passages="", embeddings="", tokenizer="", work=str(tmp_path))
    folders.scratch.mkdir()
    write_batch(folders.scattered("part-00000"), rows_of(np.zeros(5, int), 0).to_batches()[0], [5])
    there, written = set(folders.scratch.rglob("*")), []

    def full(path, leaves, schema):
        written.extend(set(folders.scratch.rglob("*")) - there)
        raise OSError("no space left on device")

    monkeypatch.setattr(leaves, "_write_partitions", full)
    with pytest.raises(OSError, match="no space"):
        write_node(folders, 0, (["part-00000"], np.array([[5]])), FIRST + LEAVES)
    assert set(folders.scratch.rglob("*")) == there
    [rows] = written
    rows.write_bytes(b"of a task that was killed")
    remove_asides(tmp_path)
    assert set(folders.scratch.rglob("*")) == there
