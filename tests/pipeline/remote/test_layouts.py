"""Where the tokens lie in a file on S3: of schema version 1, with one domain, and of domains that share it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.remote.partition_layout import find_values
from pipeline.remote.store import open_store
from pipeline.stream.window_reader import window_reader
from storage_schema.domains import DomainStore, partition_schema
from storage_schema.manifest import read_manifest
from storage_schema.stage import open_stage
from tests.remote_stores import MORE, SIZES, VOCAB, L, arrow_file, check_all, upload_once, write_part
from tests.toy_store import in_version_1

pytestmark = pytest.mark.usefixtures("in_haste")


@pytest.mark.parametrize("dtype", VOCAB)
def test_the_tokens_are_where_they_are_looked_for(dtype):
    schema = partition_schema(VOCAB[dtype])
    rng = np.random.Generator(np.random.PCG64(0))
    for size in [*range(1, 130), 1000, 4095, 4096, 4097, 65_537]:
        for passages in {1, 2, min(size, 7)}:
            tokens = rng.integers(0, VOCAB[dtype], size).astype(dtype)
            data = arrow_file(tokens, schema, passages)
            at = find_values(
                lambda start, stop, data=data: data[start:stop], len(data), size, tokens.itemsize
            )
            assert data[at : at + tokens.nbytes] == tokens.tobytes()


def test_a_footer_longer_than_the_first_read():
    schema = partition_schema(100).with_metadata({"note": "x" * 5000})
    data = arrow_file(np.arange(40, dtype=np.uint16), schema)
    at = find_values(lambda start, stop: data[start:stop], len(data), 40, 2)
    assert data[at : at + 80] == np.arange(40, dtype=np.uint16).tobytes()


@pytest.mark.parametrize(
    "kind",
    ["other length", "cut", "no magic", "no marker", "not arrow", "two batches", "compressed", "empty"],
)
def test_another_layout_is_not_taken_for_tokens(kind):
    tokens, size = np.full(4000, 4000, np.uint16), 4000
    options = pa.ipc.IpcWriteOptions(compression="zstd") if kind == "compressed" else None
    times = 2 if kind == "two batches" else 1
    data = arrow_file(tokens, partition_schema(100), options=options, times=times)
    end = len(data) - 18 - int.from_bytes(data[-10:-6], "little")
    data = {
        "cut": data[:-8],
        "no magic": data[:-1] + b"2",
        "no marker": data[:end] + b"\0" + data[end + 1 :],
        "not arrow": b"\0" * len(data),
        "empty": b"",
    }.get(kind, data)
    size = {"other length": 3999, "two batches": 8000}.get(kind, size)
    assert find_values(lambda start, stop: data[start:stop], len(data), size, 2) is None


@pytest.mark.parametrize("layout", ["shared", "version 1"])
def test_windows_of_domains_that_share_a_file_and_of_schema_version_1(s3, tmp_path, proxy, layout):
    folder = tmp_path / layout.replace(" ", "-")
    for kind, name in (("tokenizer", "tokenizer.json"), ("embeddings", "part-00000.arrow")):
        stage = open_stage(folder / kind, kind=kind, configuration={}, inputs={})
        (stage.work / name).write_text(f"the {kind}")
        stage.finish({})
    write_part(folder, SIZES, "uint16", {}, per_file=6)
    if layout == "version 1":
        in_version_1(folder)
    tree = read_manifest(folder / "domains", "domains").digest
    write_part(folder / "additions" / "0001", MORE, "uint16", {"tree": tree}, per_file=6)
    uri = upload_once(s3, folder, set())
    assert check_all(open_store(uri), folder) > 10_000
    local, store, proxy.requests[:] = DomainStore(folder), open_store(uri), []
    domains = np.repeat(np.arange(6), local.windows_K(L))
    rows = np.concatenate([np.arange(count) for count in local.windows_K(L)])
    assert np.array_equal(
        window_reader(store, L).read(domains, rows), window_reader(local, L).read(domains, rows)
    )
    asked = [(path, where) for method, path, where in proxy.requests if method == "GET" and where]
    assert len(asked) == len(set(asked)) and len({path for path, _ in asked}) == (
        2 if layout == "shared" else 5
    )
