"""What a build will take: said before it starts, within a bounded look, and again as it goes."""

from __future__ import annotations

import gzip
import json
import random
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.large_files import UndividedFile
from pipeline.corpus.listing import open_corpus
from pipeline.corpus.readers import read_documents
from pipeline.passages.cutting import cut_passages
from pipeline.planning import trial as build_trial
from pipeline.planning.estimate import CLUSTER, CUT, EMBED, TRAIN, CorpusSample, estimate_build, in_words
from pipeline.planning.trial import encoder_rate, sample_corpus
from tests.toy_corpora import save_dataset

SAMPLE = CorpusSample(files=3, bytes=10**9, characters_per_byte=0.9, passages_per_byte=0.9 / 1000)


def estimate(sample=SAMPLE, **changes):
    settings = dict(disk_bytes=2e9, cores=2, encoder_rate=50.0, held_out_fraction=0.1, max_passages=None)
    return estimate_build(sample, **settings | {"tokenizer_sample": 200_000_000} | changes)


def test_the_arithmetic():
    found = estimate()
    assert found.passages == 810_000
    assert found.seconds == pytest.approx(
        {CUT: 900 * 0.33 / 2, TRAIN: 200 * 0.37, EMBED: 810_000 / 50, CLUSTER: 810 * 3.5 / 2}
    )
    said = " ".join(found.lines())
    assert "3 files, 1 GB: at most about 810,000 passages" in said and "50 passages per second here" in said
    assert "In all 4 h 57 min: cut passages 2 min, train tokenizer 74 s, embed passages 4 h 30 min" in said
    assert "On disk about 2 GB" in said
    assert "| embed passages | 4 h 30 min |" in found.markdown()


def test_limits_and_what_is_finished_take_less():
    few = estimate(max_passages=6000)
    assert few.passages == 6000 and few.seconds[EMBED] == 120 and few.seconds[CUT] == estimate().seconds[CUT]
    assert list(estimate(finished=[CUT, TRAIN]).seconds) == [EMBED, CLUSTER]
    assert estimate(tokenizer_sample=0).seconds[TRAIN] == 0
    known = estimate().with_passages(405_000)
    assert known.seconds[EMBED] == 8100 and known.seconds[CUT] == estimate().seconds[CUT]


def test_as_it_goes_the_observed_rate_counts():
    found = estimate()
    later = found.seconds[CLUSTER]
    left = dict(first=100_000, of=810_000)
    assert found.left(EMBED, done=100_000, elapsed=0, **left) == found.seconds[EMBED] + later
    # Half of what was left when it was resumed took 1000 s: the other half will too.
    assert found.left(EMBED, done=455_000, elapsed=1000, **left) == pytest.approx(1000 + later)
    assert found.left(EMBED, done=810_000, elapsed=5000, **left) == later
    assert found.left("draw the atlas", done=1, elapsed=1, **left) is None


def test_what_is_not_known_is_not_made_up():
    found = estimate(encoder_rate=None)
    assert found.seconds[EMBED] is None and "In all an unknown time" in " ".join(found.lines())
    assert found.left(CUT, first=0, done=1, of=2, elapsed=9) is None


def test_what_one_task_must_read_alone_is_said_and_bounds_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(build_trial, "GROUP_BYTES", 1000)
    text = random.Random(0).randbytes(4000).hex()
    line = json.dumps({"text": text}) + "\n"
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "lines.jsonl").write_text(line)
    table = pa.table({"text": [text[:100]] * 90})
    options = dict(compression="none", use_dictionary=False, write_statistics=False)
    pq.write_table(table, tmp_path / "one.parquet", **options)
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=10, **options)
    sample = sample_corpus(open_corpus(str(tmp_path)), 500)
    assert [(file.name, file.reason) for file in sample.undivided] == [
        ("one.parquet", "has a large row group"),
        ("packed.jsonl.gz", "is compressed (gzip)"),
    ]
    found = estimate(
        replace(SAMPLE, undivided=(UndividedFile("c.jsonl.gz", 9 * 10**8, "is compressed (gzip)"),))
    )
    assert found.seconds[CUT] == pytest.approx(0.9 * 900 * 0.33)  # of 900 million characters on 2 cores
    said = "c.jsonl.gz is compressed (gzip), so one core reads 0.9 GB of it alone."
    assert said in found.lines()[-1] and said in found.markdown()
    assert not estimate().undivided_lines() and not replace(found, undivided=()).undivided_lines()
    more = estimate(replace(SAMPLE, undivided=sample.undivided)).lines()[-1]
    assert "alone (and so of 1 more). To use more cores" in more
    assert not estimate(replace(SAMPLE, undivided=sample.undivided), finished=[CUT]).undivided_lines()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (74, "74 s"),
        (300, "5 min"),
        (9000, "2 h 30 min"),
        (44_000, "12 h"),
        (273_600, "3 days 4 h"),
    ],
)
def test_words(seconds, words):
    assert in_words(seconds) == words


def write_kinds(folder):
    """Files beyond the bound on what is read of each, and small ones."""
    records = [
        {"text": f"{number} " + "words of a text, é. " * (number % 90), "other": number}
        for number in range(4000)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    pq.write_table(
        pa.Table.from_pylist(records), folder / "t.parquet", compression="none", row_group_size=999
    )
    (folder / "large.jsonl").write_text(lines)
    (folder / "large.txt").write_text("a line of a book\n" * 100_000)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress("".join(lines.splitlines(True)[:100]).encode()))
    for number in range(200):
        (folder / f"{number:03d}.txt").write_text("a short note. " * number)


@pytest.mark.parametrize("only", ["*", "t.parquet", "large.jsonl", "large.txt", "packed.jsonl.gz"])
def test_a_sample_says_nearly_what_all_of_it_does(tmp_path, monkeypatch, only):
    write_kinds(tmp_path)
    monkeypatch.setattr(build_trial, "FILE_BYTES", 1 << 17)
    monkeypatch.setattr(build_trial, "LOOK_SECONDS", 60)
    corpus = open_corpus(str(tmp_path if only == "*" else tmp_path / only))
    texts = [document.text for file in corpus.files for document in read_documents(corpus, file)]
    sample = sample_corpus(corpus, 500)
    assert sample.files == len(corpus.files)
    assert sample.characters_per_byte * sample.bytes == pytest.approx(sum(map(len, texts)), rel=0.1)
    passages = sum(len(cut_passages(text, 500)) for text in texts)
    assert sample.passages == pytest.approx(passages, rel=0.15)
    assert only == "large.txt" or 8 < len(sample.texts) <= build_trial.TEXTS


def test_a_large_saved_dataset_has_no_more_text_than_bytes(tmp_path, monkeypatch):
    records = [{"text": f"{number} " + "words of a text. " * 60} for number in range(500)]
    save_dataset(tmp_path / "saved", records, shards=1)
    monkeypatch.setattr(build_trial, "FILE_BYTES", 1 << 17)
    sample = sample_corpus(open_corpus(str(tmp_path / "saved")), 500)
    characters = sum(len(record["text"]) for record in records)
    assert sample.characters_per_byte * sample.bytes == pytest.approx(characters, rel=0.1)


def test_the_look_is_bounded_by_bytes_and_seconds(tmp_path, monkeypatch):
    for number in range(300):
        (tmp_path / f"{number:03d}.jsonl").write_text('{"text": "some words"}\n' * 200)
    corpus, read = open_corpus(str(tmp_path)), []

    def slow(corpus, file):
        read.append(file.bytes)
        time.sleep(0.01)
        return read_documents(corpus, file)

    monkeypatch.setattr(build_trial, "read_documents", slow)
    sample_corpus(corpus, 500)
    assert 0 < len(read) <= build_trial.FILES < 100
    monkeypatch.setattr(build_trial, "LOOK_SECONDS", 0)
    read.clear()
    assert sample_corpus(corpus, 500).passages == 60_000 and len(read) == 1
    monkeypatch.setattr(build_trial, "FILE_BYTES", 100)
    monkeypatch.setattr(
        build_trial, "read_documents", lambda corpus, file: read.append(file.piece.end) or iter(())
    )
    sample_corpus(corpus, 500)
    assert read[-1] == 100  # of a large file the first bytes


def test_a_corpus_that_cannot_be_read_is_not_the_estimates_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("{broken\n" * 9)
    sample = sample_corpus(open_corpus(str(tmp_path)), 500)
    assert sample.passages == 0 and sample.texts == ()
    assert encoder_rate(None, sample, runtime="auto", max_seq_length=9, max_passages=None) is None
    assert estimate(sample, encoder_rate=None).passages == 0


def test_the_encoders_rate_is_measured_and_soon(monkeypatch):
    embedded = []

    def embed(model, texts):
        time.sleep(0.01 * len(texts))
        embedded.extend(texts)
        return np.ones((len(texts), 2))

    monkeypatch.setattr(build_trial, "embed_texts", embed)
    monkeypatch.setattr(build_trial, "tokenizer_of", lambda model: None)
    monkeypatch.setattr(build_trial, "TRY_SECONDS", 0.2)
    sample = CorpusSample(
        files=1,
        bytes=9,
        characters_per_byte=1,
        passages_per_byte=1,
        texts=tuple("a passage" for _ in range(64)),
    )
    rate = encoder_rate(SimpleNamespace(), sample, runtime="openvino", max_seq_length=9, max_passages=10**6)
    assert 40 < rate <= 100 and len(embedded) < 50
