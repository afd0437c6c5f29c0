from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipeline import tokenizer as tokenizer_module
from pipeline.tokenizer import (
    END_OF_TEXT,
    build_tokenizer,
    check_lossless,
    load_tokenizer,
    train_tokenizer,
)
from storage_schema.manifest import StoreError, file_digest
from storage_schema.stage import open_stage

TEXTS = [
    "the cat sat on the mat\n",
    "the dog sat on the log\n",
    "naïve café — 日本語 \N{PARTY POPPER}\n",
] * 20


def here(function, arguments):
    """Tasks, run in this process."""
    return [function(*some) for some in arguments]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter([TEXTS]), vocab_size=320).save(str(path))
    return path


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


def test_a_given_tokenizer_is_copied_as_it_is(path, tmp_path):
    stage = open_stage(tmp_path / "given", kind="tokenizer", configuration={}, inputs={})
    build_tokenizer(stage, tmp_path, vocab_size=300, sample_characters=10_000, given=str(path), run=here)
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


def test_a_given_tokenizer_may_be_named_by_its_folder(path, tmp_path):
    stage = open_stage(tmp_path / "given", kind="tokenizer", configuration={}, inputs={})
    build_tokenizer(
        stage, tmp_path, vocab_size=300, sample_characters=10_000, given=str(path.parent), run=here
    )
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
            build_tokenizer(
                stage, tmp_path, vocab_size=300, sample_characters=10_000, given=str(file), run=here
            )


def test_a_given_tokenizer_whose_end_of_text_is_an_ordinary_token_is_refused(path, tmp_path):
    """A document about tokenizers would end in its middle."""
    body = json.loads(path.read_text().replace(END_OF_TEXT, "</s>"))
    body["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="loses text: 'a </s> within a text'.*is a special one"):
        check_lossless(load_tokenizer(tmp_path), tmp_path)
