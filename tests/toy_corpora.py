"""Small corpora of every kind that build-domains reads."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.corpus.listing import open_corpus
from pipeline.corpus.readers import read_documents

RECORDS = [{"text": f"text {i}, é", "source": f"s{i % 2}"} for i in range(50)]
MANY_RECORDS = [{"text": f"text {i}", "source": "s"} for i in range(2500)]
PACKED = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
"""Ending of a packed file → what packs it."""


def read_all(uri, **options):
    """Every document and bad document of a corpus, in order."""
    corpus = open_corpus(str(uri), **options)
    return [document for file in corpus.files for document in read_documents(corpus, file)]


def json_lines(records=RECORDS):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def save_dataset(folder, records=RECORDS, *, shards=2, batch=7, **state):
    """The layout of `datasets.Dataset.save_to_disk`, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(records[number::shards], pa.Table.from_pylist(records).schema)
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table, max_chunksize=batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", **state}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))


def save_dictionary(folder, splits):
    """The layout of `datasets.DatasetDict.save_to_disk`; `splits` maps names to records."""
    for name, records in splits.items():
        save_dataset(folder / name, records)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def _text(folder):
    for name in ("b/x.txt", "b/c/deep.md", "a.md", "B.rst", "space and é.txt", "100%.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the text of {name}\n" * 9)
    (folder / "packed.txt.gz").write_bytes(gzip.compress(b"packed text"))
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG")


def _lines(folder):
    (folder / "plain.jsonl").write_bytes(json_lines() + b'{"txt": "misspelt"}\n')
    (folder / "no-source.ndjson").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')


def _everything(folder):
    for name, write in KINDS.items():
        if write is not _everything:
            (folder / name).mkdir()
            write(folder / name)


KINDS = {
    "lines": _lines,
    "lines-gz": lambda folder: (folder / "a.jsonl.gz").write_bytes(gzip.compress(json_lines())),
    "lines-zst": lambda folder: (folder / "a.json.zst").write_bytes(zstandard.compress(json_lines())),
    "parquet": lambda folder: pq.write_table(
        pa.Table.from_pylist(RECORDS), folder / "t.parquet", row_group_size=9
    ),
    "text": _text,
    "dataset": save_dataset,
    "dictionary": lambda folder: save_dictionary(folder, {"train": RECORDS, "test": RECORDS[:3]}),
    "everything": _everything,
}
"""Name of a kind of input → writes one into an empty folder."""
