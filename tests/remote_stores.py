"""Stores to be put on S3, and what is asked of each of their windows."""

from __future__ import annotations

import io
import os

import numpy as np
import pyarrow as pa

from storage_schema.domains import DomainStore, partition_path, partition_schema
from storage_schema.stage import open_stage
from storage_schema.tree import Tree
from tests.s3_server import BUCKET, upload
from tests.toy_store import write_batches, write_index

L = 16
SIZES = [0, 5, L + 1, 1000, 150_000, 100_003]
MORE = [40, 700, 0, 70_000, 3, 33]
"""Tokens of the domains, and of an addition to them."""
VOCAB = {"uint16": 1 << 16, "uint32": 1 << 17}


def upload_once(s3, folder, uploaded):
    if folder.name not in uploaded:
        upload(s3, folder)
        uploaded.add(folder.name)
    return f"s3://{BUCKET}/{folder.name}"


def write_part(folder, sizes, dtype, inputs, per_file=1):
    """Domains of any tokens, a few passages each."""
    rng, schema = np.random.Generator(np.random.PCG64(sum(sizes))), partition_schema(VOCAB[dtype])
    configuration = {"vocab_size": VOCAB[dtype], "end_of_text": 0}
    stage = open_stage(folder / "domains", kind="domains", configuration=configuration, inputs=inputs)
    batches = [
        passages_of(rng.integers(0, VOCAB[dtype], size).astype(dtype), schema, 3 * bool(size))
        for size in sizes
    ]
    places = write_batches(stage.work, batches, per_file)
    columns = [range(len(sizes)), sizes, sizes, *map(list, zip(*places, strict=True))]
    write_index(stage.work, columns)
    leaves_KD = np.eye(len(sizes), dtype=np.float32)
    distance_K = np.zeros(len(sizes), np.float32)
    Tree(
        coarse_CD=leaves_KD[:1],
        leaves_KD=leaves_KD,
        counts_K=np.array(sizes),
        mean_distance_K=distance_K,
    ).write(stage.work / "tree.arrow")
    return stage.finish({"tokens": sum(sizes)})


def arrow_file(tokens, schema, passages=3, options=None, times=1):
    """The bytes of a file of one domain, the tokens shared among some passages."""
    file = io.BytesIO()
    with pa.ipc.new_file(file, schema, options=options) as writer:
        for _ in range(times):
            writer.write_batch(passages_of(tokens, schema, passages))
    return file.getvalue()


def passages_of(tokens, schema, passages):
    """The tokens shared among some passages."""
    edges = np.linspace(0, len(tokens), passages + 1).astype(np.int64)
    numbers = range(passages)
    columns = [
        pa.array(numbers, pa.int64()),
        pa.array([f"d{number}" for number in numbers], pa.string()),
        pa.array(["s" * number for number in numbers], pa.string()),
        pa.array([0.5] * passages, pa.float32()),
        pa.LargeListArray.from_arrays(pa.array(edges), pa.array(tokens)),
    ]
    return pa.record_batch(columns, schema=schema)


def windows_of(tokens, length=L):
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]


def gather(windows, rows, length=L):
    out = np.empty((len(rows), length + 1), windows.store.token_dtype)
    windows.gather(np.array(rows), out)
    return out


def check_all(store, folder, length=L):
    """Every window of every domain is that of the local store; returns how many there were."""
    rng, local, count = np.random.Generator(np.random.PCG64(1)), DomainStore(folder), 0
    for domain in range(local.num_domains):
        parts = [volume.tokens(domain) for volume in local.volumes if volume.tokens_K[domain] > length]
        remote = store.windows(domain, length)
        assert len(remote) == len(parts)
        for windows, tokens in zip(remote, parts, strict=True):
            expected = windows_of(tokens, length)
            assert len(windows) == len(expected)
            rows = rng.permutation(np.r_[: len(expected), : min(5, len(expected))])
            found = gather(windows, rows, length)
            assert found.dtype == tokens.dtype and np.array_equal(found, expected[rows])
            count += len(expected)
    assert count == local.windows_K(length).sum()
    return count


def fds_below(folder):
    names = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(name).startswith(str(folder)) for name in names if os.path.islink(name))


def key_of(folder, domain, part=""):
    return f"{folder.name}/{part}domains/{partition_path(domain)}"
