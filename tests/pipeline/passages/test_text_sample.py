"""The tokenizer's sample: bounded, spread over all documents, and read by tasks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.passages import text_sample
from pipeline.passages.cutting import text_hash
from pipeline.passages.text_sample import PURPOSE, TextSample, batches_of
from pipeline.tokenizer import build_tokenizer, load_tokenizer
from storage_schema.corpus import PASSAGES, part_files
from storage_schema.manifest import StoreError
from storage_schema.stage import open_stage


def here(function, arguments):
    """Tasks, run in this process."""
    return [function(*some) for some in arguments]


def sample_of(passages, limit, total):
    return TextSample(passages, limit, total, here)


def batches(sample, folder):
    folder.mkdir()
    sample.write(folder)
    return [*batches_of(folder, sample.document_characters)]


def write_passages(folder, documents, parts=1):
    """A finished passages stage whose documents are given as {document_id: [passages]}."""
    stage = open_stage(folder / "passages", kind="passages", configuration={}, inputs={})
    rows = [(name, text) for name, texts in documents.items() for text in texts]
    columns = [range(len(rows)), *zip(*((n, "s", t, text_hash(t)) for n, t in rows), strict=True)]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, PASSAGES, strict=True)], schema=PASSAGES)
    (stage.work / "train").mkdir()
    edges = np.linspace(0, len(table), parts + 1).astype(int)
    for number, (begin, end) in enumerate(pairwise(edges.tolist())):
        path = stage.work / "train" / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(begin, end - begin), path)
    stage.finish({"train_characters": sum(len(text) for _, text in rows)})
    return folder / "passages"


def test_sample_is_bounded_for_each_document_and_altogether(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sample, "DOCUMENT_CHARACTERS", 1000)
    # One huge document full of one word must not decide the vocabulary.
    documents = {f"d{i}": ["small documents differ " * 10] * 3 for i in range(50)}
    documents["huge"] = ["zzzzqqqq " * 200] * 100
    passages = write_passages(tmp_path, documents)
    stage = open_stage(tmp_path / "all", kind="tokenizer", configuration={}, inputs={})
    manifest = build_tokenizer(stage, passages, vocab_size=400, sample_characters=10**9, run=here)
    assert manifest.counts["sample_characters"] == 50 * 690 + 1000
    stage = open_stage(tmp_path / "few", kind="tokenizer", configuration={}, inputs={})
    manifest = build_tokenizer(stage, passages, vocab_size=400, sample_characters=30_000, run=here)
    assert 0 < manifest.counts["sample_characters"] <= 31_000
    assert load_tokenizer(tmp_path / "few").vocab_size == manifest.counts["vocab_size"]


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03, 0.02, 0.01])
def test_the_sample_is_as_large_as_asked_of_whatever_is_left_for_training(tmp_path, share):
    """The documents with the smallest hashes are held out; they were the ones that the sample was to be of."""
    names = [f"d{i}" for i in range(3000)]
    names = [name for name in names if text_hash(name) >= int(0.02 * 2**64)]
    passages = write_passages(tmp_path, {name: [f"{name:>10}" * 10] for name in names})
    total = 100 * len(names)
    sample = sample_of(passages, int(share * total), total)
    texts = [text for batch in batches(sample, tmp_path / "sample") for text in batch]
    assert share * total <= sum(map(len, texts)) == sample.characters <= share * total + 100
    # Spread over all documents: of each quarter about as many.
    at = np.array([names.index(text[:10].strip()) for text in texts]) * 4 // len(names)
    assert np.bincount(at, minlength=4).min() > len(texts) / 4 - 3 * (3 * len(texts) / 16) ** 0.5


def test_of_one_long_text_the_sample_is_no_scrap(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sample, "DOCUMENT_CHARACTERS", 100)
    passages = write_passages(tmp_path, {"book": ["chapter text " * 10] * 400})
    assert sample_of(passages, 10**6, 52_000).characters == 52_000
    assert sample_of(passages, 20_000, 52_000).characters == 20_000
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="sample is empty: .*no training text"):
        sample_of(tmp_path / "none", 10_000, 0)


def test_the_sample_of_a_folder_with_an_odd_name_and_of_a_damaged_part(tmp_path):
    passages = write_passages(tmp_path / "[1]" / "a=*", {"d": ["some text"]})
    assert batches(sample_of(passages, 10**6, 9), tmp_path / "sample") == [["some text"]]
    (passages / "train" / "part-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match=r"cannot read .*\[1\]/a=\*/passages/train/part-00000.parquet"):
        sample_of(passages, 10**6, 9)


@pytest.mark.parametrize("bytes_per_group", [1, 8 << 20])
def test_the_sample_is_the_same_whatever_the_parts_and_tasks(tmp_path, monkeypatch, bytes_per_group):
    """Documents of one to nine passages, some of them longer than one may give, that parts cut in their middle."""
    monkeypatch.setattr(text_sample, "DOCUMENT_CHARACTERS", 80)
    monkeypatch.setattr(text_sample, "MARGIN", 1.1)
    monkeypatch.setattr(text_sample, "GROUP_BYTES", bytes_per_group)
    generator = np.random.default_rng(0)
    documents = {f"d{i}": [f"{i:>20}"] * generator.integers(1, 10) for i in range(400)}
    given = {name: min(80, 20 * len(texts)) for name, texts in documents.items()}
    names = sorted(given, key=lambda name: text_hash(name, purpose=PURPOSE))
    last = int(np.searchsorted(np.cumsum([given[name] for name in names]), 3000))
    expected = {name: given[name] for name in names[: last + 1]}
    passages = write_passages(tmp_path, documents, parts=100)
    held = [pq.read_table(part)["document_id"].unique().to_pylist() for part in part_files(passages, "train")]
    split = {one for some, more in pairwise(held) for one in {*some} & {*more}}
    assert any(expected.get(name) == 80 < 20 * len(documents[name]) for name in split)
    total = sum(20 * len(texts) for texts in documents.values())
    sample = sample_of(passages, 3000, total)
    texts = [text for batch in batches(sample, tmp_path / "sample") for text in batch]
    assert sample.characters == sum(expected.values())
    assert texts == [
        f"{name[1:]:>20}" for name in documents if name in expected for _ in range(expected[name] // 20)
    ]


def test_tasks_return_no_more_of_a_larger_corpus(tmp_path, monkeypatch):
    """And no text at all: the sample may have hundreds of megabytes, and this process would keep their memory."""
    monkeypatch.setattr(text_sample, "GROUP_BYTES", 1)
    returned = {}

    def run(function, arguments):
        results = here(function, arguments)
        if function is text_sample.lengths_of_documents:
            returned[number] = sum(len(lengths) for lengths, _ in results)
        else:
            assert all(result is None or type(result) is int for result in results)
        return results

    for number in (1000, 8000):
        passages = write_passages(
            tmp_path / str(number), {f"d{i}": [f"{i:>20}"] for i in range(number)}, parts=9
        )
        stage = open_stage(
            tmp_path / str(number) / "tokenizer", kind="tokenizer", configuration={}, inputs={}
        )
        build_tokenizer(stage, passages, vocab_size=300, sample_characters=200, run=run)
    assert returned[8000] < 1.6 * returned[1000] < 400
