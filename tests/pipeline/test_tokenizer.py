from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipeline import tokenizer as tokenizer_module
from pipeline.cutting import text_hash
from pipeline.tokenizer import END_OF_TEXT, build_tokenizer, check_lossless, load_tokenizer, train_tokenizer
from storage_schema.corpus import PASSAGES
from storage_schema.manifest import StoreError, file_digest
from storage_schema.stage import open_stage

TEXTS = [
    "the cat sat on the mat\n",
    "the dog sat on the log\n",
    "naïve café — 日本語 \N{PARTY POPPER}\n",
] * 20


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter([TEXTS]), vocab_size=320).save(str(path))
    return path


def write_passages(folder, documents):
    """A finished passages stage whose documents are given as {document_id: [passages]}."""
    stage = open_stage(folder / "passages", kind="passages", configuration={}, inputs={})
    rows = [(name, text) for name, texts in documents.items() for text in texts]
    columns = [range(len(rows)), *zip(*((n, "s", t, text_hash(t)) for n, t in rows), strict=True)]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, PASSAGES, strict=True)], schema=PASSAGES)
    (stage.work / "train").mkdir()
    pq.write_table(table, stage.work / "train" / "part-00000.parquet")
    stage.finish({"train_characters": sum(len(text) for _, text in rows)})
    return folder / "passages"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        " leading",
        "tab\t\r\n\n  trailing ",
        "\x00\x7f",
        "日本 𝔘 é e\u0301",
        f"a {END_OF_TEXT} b",
        "a" * 999,
    ],
)
def test_decoding_gives_the_text_back(path, text):
    tokenizer = load_tokenizer(path)
    [ids] = tokenizer.encode([text])
    assert ids.dtype == np.uint16
    assert ids[-1] == tokenizer.end_of_text and (ids[:-1] != tokenizer.end_of_text).all()
    assert tokenizer.decode(ids) == text


def test_training_is_deterministic_and_learns(path, tmp_path):
    train_tokenizer(iter([TEXTS]), vocab_size=320).save(str(tmp_path / "again.json"))
    assert file_digest(tmp_path / "again.json") == file_digest(path)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size <= 320
    assert len(tokenizer.encode(["the cat sat"])[0]) < 7


def test_windows_follow_the_rule_of_partitions(path):
    tokenizer = load_tokenizer(path)
    stream = np.concatenate(tokenizer.encode(TEXTS[:3]))
    windows = tokenizer.encode_windows(TEXTS[:3], 7)
    assert windows.dtype == np.int64
    assert len(windows) == (len(stream) - 1) // 7
    for r, window in enumerate(windows):
        assert window.tolist() == stream[r * 7 : r * 7 + 8].tolist()
    assert tokenizer.encode_windows([], 7).shape == (0, 8)
    with pytest.raises(ValueError, match="sequence_length is 0"):
        tokenizer.encode_windows(TEXTS, 0)


def test_large_vocabularies_need_uint32(path):
    tokenizer = load_tokenizer(path)
    larger = tokenizer_module.TextTokenizer(tokenizer.tokenizer, tokenizer.end_of_text, 70_000)
    assert larger.encode(["a"])[0].dtype == np.uint32


def test_sample_is_bounded_for_each_document_and_altogether(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "DOCUMENT_CHARACTERS", 1000)
    # One huge document full of one word must not decide the vocabulary.
    documents = {f"d{i}": ["small documents differ " * 10] * 3 for i in range(50)}
    documents["huge"] = ["zzzzqqqq " * 200] * 100
    passages = write_passages(tmp_path, documents)
    stage = open_stage(tmp_path / "all", kind="tokenizer", configuration={}, inputs={})
    manifest = build_tokenizer(stage, passages, vocab_size=400, sample_characters=10**9)
    assert manifest.counts["sample_characters"] == 50 * 690 + 1000
    stage = open_stage(tmp_path / "few", kind="tokenizer", configuration={}, inputs={})
    manifest = build_tokenizer(stage, passages, vocab_size=400, sample_characters=30_000)
    assert 0 < manifest.counts["sample_characters"] <= 31_000
    assert load_tokenizer(tmp_path / "few").vocab_size == manifest.counts["vocab_size"]


def test_a_given_tokenizer_is_copied_as_it_is(path, tmp_path):
    stage = open_stage(tmp_path / "given", kind="tokenizer", configuration={}, inputs={})
    build_tokenizer(stage, tmp_path, vocab_size=300, sample_characters=10_000, given=str(path))
    assert file_digest(tmp_path / "given" / "tokenizer.json") == file_digest(path)


def test_what_is_not_a_usable_tokenizer_is_named(tmp_path):
    with pytest.raises(StoreError, match="no tokenizer at .*absent"):
        load_tokenizer(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(StoreError, match="broken.json is not a tokenizer.json"):
        load_tokenizer(tmp_path / "broken.json")
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "endless.json"))
    with pytest.raises(StoreError, match="none of the end-of-text tokens"):
        load_tokenizer(tmp_path / "endless.json")


@pytest.mark.parametrize("share", [0.5, 0.05, 0.02])
def test_the_sample_does_not_depend_on_what_is_held_out(tmp_path, share):
    """The documents with the lowest hashes are held out, so the sample must not be drawn by the same hash."""
    names = [f"document {number}" for number in range(6000)]
    documents = {name: ["a document of forty characters, no more "] for name in names}
    left = {name: texts for name, texts in documents.items() if text_hash(name) >= 0.02 * 2**64}
    passages = write_passages(tmp_path, left)
    stage = open_stage(tmp_path / "some", kind="tokenizer", configuration={}, inputs={})
    wanted = int(share * 40 * len(left))
    found = build_tokenizer(stage, passages, vocab_size=300, sample_characters=wanted).counts[
        "sample_characters"
    ]
    assert 0.5 * wanted < found <= wanted + 40


def test_a_sample_of_next_to_nothing_is_refused(tmp_path):
    documents = {f"d{number}": ["x" * 900_000 if number else "y" * 100] for number in range(2)}
    passages = write_passages(tmp_path, documents)
    stage = open_stage(tmp_path / "none", kind="tokenizer", configuration={}, inputs={})
    with pytest.raises(
        ValueError, match=r"sample has 0 characters, where 1 of the 900,100 .* Raise tokenizer_sample"
    ):
        build_tokenizer(stage, passages, vocab_size=300, sample_characters=1)


def test_a_given_tokenizer_may_be_named_by_its_folder(path, tmp_path):
    stage = open_stage(tmp_path / "given", kind="tokenizer", configuration={}, inputs={})
    build_tokenizer(stage, tmp_path, vocab_size=300, sample_characters=10_000, given=str(path.parent))
    assert file_digest(tmp_path / "given" / "tokenizer.json") == file_digest(path)


def test_a_given_tokenizer_that_loses_text_is_refused(path, tmp_path):
    check_lossless(load_tokenizer(path), path)
    lossy = Tokenizer.from_file(str(path))
    lossy.normalizer = normalizers.Lowercase()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, END_OF_TEXT: 2}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for number, tokenizer in enumerate([lossy, words]):
        file = tmp_path / f"{number}.json"
        tokenizer.save(str(file))
        stage = open_stage(tmp_path / f"given-{number}", kind="tokenizer", configuration={}, inputs={})
        with pytest.raises(ValueError, match=r"loses text: .* comes back as .* Give a byte-level one"):
            build_tokenizer(stage, tmp_path, vocab_size=300, sample_characters=10_000, given=str(file))
