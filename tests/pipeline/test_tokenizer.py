from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipeline import tokenizer as tokenizer_module
from pipeline.passages.cutting import text_hash
from pipeline.tokenizer import (
    END_OF_TEXT,
    _Sample,
    build_tokenizer,
    check_lossless,
    load_tokenizer,
    train_tokenizer,
)
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


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03, 0.02, 0.01])
def test_the_sample_is_as_large_as_asked_of_whatever_is_left_for_training(tmp_path, share):
    """The documents with the smallest hashes are held out; they were the ones that the sample was to be of."""
    names = [f"d{i}" for i in range(3000)]
    names = [name for name in names if text_hash(name) >= int(0.02 * 2**64)]
    passages = write_passages(tmp_path, {name: [f"{name:>10}" * 10] for name in names})
    total = 100 * len(names)
    sample = _Sample(passages, int(share * total), total)
    texts = [text for batch in sample for text in batch]
    assert share * total <= sum(map(len, texts)) == sample.characters <= share * total + 100
    # Spread over all documents: of each quarter about as many.
    at = np.array([names.index(text[:10].strip()) for text in texts]) * 4 // len(names)
    assert np.bincount(at, minlength=4).min() > len(texts) / 4 - 3 * (3 * len(texts) / 16) ** 0.5


def test_of_one_long_text_the_sample_is_no_scrap(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "DOCUMENT_CHARACTERS", 100)
    passages = write_passages(tmp_path, {"book": ["chapter text " * 10] * 400})
    assert _Sample(passages, 10**6, 52_000).characters == 52_000
    assert _Sample(passages, 20_000, 52_000).characters == 20_000
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="sample is empty: .*no training text"):
        _Sample(tmp_path / "none", 10_000, 0)


def test_the_sample_of_a_folder_with_an_odd_name_and_of_a_damaged_part(tmp_path):
    passages = write_passages(tmp_path / "[1]" / "a=*", {"d": ["some text"]})
    assert list(_Sample(passages, 10**6, 9)) == [["some text"]]
    (passages / "train" / "part-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match=r"cannot read .*\[1\]/a=\*/passages/train/part-00000.parquet"):
        _Sample(passages, 10**6, 9)


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


def test_a_given_tokenizer_whose_end_of_text_is_an_ordinary_token_is_refused(path, tmp_path):
    """A document about tokenizers would end in its middle."""
    body = json.loads(path.read_text().replace(END_OF_TEXT, "</s>"))
    body["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="loses text: 'a </s> within a text'.*is a special one"):
        check_lossless(load_tokenizer(tmp_path), tmp_path)
