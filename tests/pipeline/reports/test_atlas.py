"""What the atlas says of each domain, on stores whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.reports import atlas
from pipeline.reports.atlas import (
    Background,
    collect_atlas,
    distinguishing_words,
    passages_with_word,
    shorten,
)
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.planted import planted_languages
from tests.toy_store import make_store, write_texts


@pytest.fixture(scope="module")
def languages():
    return planted_languages(4, words=60, shared=0.4, seed=3)


@pytest.fixture(scope="module")
def planted(languages, tmp_path_factory):
    """Two coarse nodes of three domains; domain 2 is empty, the last one holds a single passage."""
    generator = np.random.Generator(np.random.PCG64(0))
    texts = [[language.document(80, generator) for _ in range(30)] for language in languages]
    domains = [texts[0], texts[1], [], texts[2], texts[3], ["unlike anything: zebra zebra"]]
    return DomainStore(write_texts(tmp_path_factory.mktemp("planted") / "store", domains, coarse=2))


def test_the_words_are_the_languages_own(planted, languages):
    found = collect_atlas(planted)
    others = set(languages[0].words) & set(languages[1].words)
    assert len(others) == 24  # what the languages share
    for domain, language in ((0, 0), (1, 1), (3, 2), (4, 3)):
        own = set(languages[language].words) - others
        words = found.domains[domain].words
        assert len(words) == atlas.WORDS and set(words) <= own
    assert "zebra" in found.domains[5].words
    assert set(found.coarse_words[0]) <= set(languages[0].words) | set(languages[1].words)
    assert set(found.coarse_words[1]) <= set(languages[2].words) | set(languages[3].words)


def test_the_numbers_sources_and_samples(planted):
    found = collect_atlas(planted)
    assert found.digest == planted.digest and len(found.domains) == 6
    assert [portrait.tokens for portrait in found.domains] == planted.tokens_K.tolist()
    assert [portrait.passages for portrait in found.domains] == [30, 30, 0, 30, 30, 1]
    first = found.domains[0]
    distances = planted.passages(0)["distance"].to_numpy()
    assert first.mean_squared_distance == pytest.approx(np.square(distances).mean())
    assert first.sources == (("even", 0.5), ("odd", 0.5)) and first.sampled == 30
    assert len(first.samples) == 3 and all(len(text.encode()) <= atlas.SAMPLE_BYTES for text in first.samples)
    assert found.domains[2] == atlas.DomainPortrait(tokens=0, passages=0)
    assert found.domains[5].samples == ("unlike anything: zebra zebra",)


def test_the_nearest_passages_are_shown(planted):
    batch = planted.volumes[0].batch(3)
    # write_texts puts each passage a little further from the centroid than the one before.
    assert np.argmin(batch.column("distance").to_numpy()) == 0
    from pipeline.tokenizer import load_tokenizer

    text = load_tokenizer(planted.folder.parent / "tokenizer").decode(
        batch.column("tokens")[0].values.to_numpy()
    )
    assert text.startswith(collect_atlas(planted).domains[3].samples[0].rstrip("…"))


def test_what_is_read_is_bounded(planted, monkeypatch):
    monkeypatch.setattr(atlas, "READ", 5)
    monkeypatch.setattr(atlas, "READ_TOKENS", 20)
    monkeypatch.setattr(atlas, "NUMBERED", 10)
    decoded = []
    real = atlas.TextTokenizer.decode
    monkeypatch.setattr(
        atlas.TextTokenizer, "decode", lambda self, ids: decoded.append(len(ids)) or real(self, ids)
    )
    found = collect_atlas(planted)
    assert len(decoded) == 4 * 5 + 1 and max(decoded) <= 20
    assert found.domains[0].sampled == 10 and found.domains[0].passages == 30
    # A passage that was cut does not end in half a word.
    known = {word for portrait in found.domains[:5] for word in portrait.words}
    assert known <= {
        word for language in planted_languages(4, words=60, shared=0.4, seed=3) for word in language.words
    }


def test_a_words_score_by_hand():
    background = Background()
    background.add({"here": 6, "both": 6, "all": 10}, 10)
    background.add({"both": 3, "all": 10, "there": 9}, 10)
    words = distinguishing_words({"here": 6, "both": 6, "all": 10}, 10, background)
    assert words == ("here", "both")  # `all` is no commoner here than anywhere
    q, p = 0.6, 0.3
    here = 10 * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
    q, p = 0.6, 0.45
    both = 10 * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
    assert here > both > 0
    assert distinguishing_words({"only": 2}, 2, background_of({"only": 2}, 2)) == ()


def background_of(counts, passages):
    background = Background()
    background.add(counts, passages)
    return background


def test_words_are_letters_and_digits_of_any_script():
    counts = passages_with_word(["Größe größe x1 x12 abc_def 123 it's naïve", "Данные " + "a" * 25])
    assert counts == {"größe": 1, "x12": 1, "abc": 1, "def": 1, "naïve": 1, "данные": 1}


def test_the_background_forgets_rare_words_only():
    background = Background(limit=100)
    for number in range(1000):
        background.add({"common": 2, f"rare{number}": 1}, 2)
    assert background["common"] == 2000 and background.passages == 2000
    assert len(background._counts) <= 100


def test_a_shortened_text_is_whole_characters_without_blank_lines():
    assert shorten("\n\n a\n\n\n b  \n", 100) == "a\n b"
    for most in range(4, 30):
        text = shorten("äöü" * 20, most)
        assert len(text.encode()) <= most and text.endswith("…") and "\ufffd" not in text


def test_a_store_of_other_kinds_of_domains(tmp_path):
    """One domain, and domains of a single repeated passage: nothing sets them apart, and nothing fails."""
    found = collect_atlas(DomainStore(write_texts(tmp_path / "one", [["alpha beta"] * 9])))
    assert found.domains[0].words == () and found.coarse_words == ((),)
    found = collect_atlas(DomainStore(make_store(tmp_path / "toy", [300, 0, 1000])))
    assert [portrait.tokens for portrait in found.domains] == [300, 0, 1000]


def test_a_broken_partition_is_named(tmp_path):
    store = DomainStore(make_store(tmp_path / "store", [300, 1000]))
    (store.folder / partition_path(1)).write_bytes(b"ARROW1")
    with pytest.raises(StoreError, match="domain 1: cannot read"):
        collect_atlas(store)
    assert isinstance(store.passages(0), pa.Table)
