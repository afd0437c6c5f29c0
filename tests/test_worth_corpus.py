"""The corpus of the benchmark of what a soup is worth: its texts are read, each kind is written once."""

import gzip
import json
import time

import pytest

from storage_schema.errors import UserError
from tests.benchmarks.worth import corpus, kinds, packages
from tests.benchmarks.worth.plain_text import of_html


def test_a_page_gives_what_its_reader_sees():
    page = """<html><head><title>no</title></head><body><div role="navigation">no <div>nor this</div></div>
        <p>One<br>two &amp; three<script>no()</script></p><li>never closed<div class="sphinxsidebar">no</div>
        <p>last</body></html>"""
    assert of_html(page).split() == ["One", "two", "&", "three", "never", "closed", "last"]


def test_unclosed_elements_cost_linear_time():
    seconds = []
    for size in 4_000, 32_000:
        begun = time.process_time()
        of_html("<div><li>word " * size)
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 24 * seconds[0]  # 8 for linear, 64 for quadratic


def test_kinds_know_their_formats(tmp_path):
    (tmp_path / "a.mm").write_text("$( A rule. (Contributed by NM, 1-Jan-2000.) $)\nid $p |- ph $= ABC $.")
    assert list(kinds._metamath(tmp_path)) == [("formal", "$( A rule.  $)\nid $p |- ph ")]
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(b"Ape n.\n   A beast.\nRun v.\n   To go fast."))
    assert dict(kinds._dictionary(tmp_path))["dictionary"].startswith("Ape")
    (tmp_path / "data.noun").write_text("  1 licence\n01 04 n 02 big_ape 0 ape 1 000 | a beast  \n")
    assert list(kinds._wordnet(tmp_path)) == [("wordnet", "big ape, ape: a beast")]
    service = tmp_path / "botocore/data/sagemaker/2020-01-01/service-2.json"
    service.parent.mkdir(parents=True)
    fields = {"Name": {"documentation": "<p>Its name.</p>"}}
    operation = {"name": "Begin", "documentation": "<p>Begins it.</p>", "input": {"shape": "S"}}
    service.write_text(json.dumps({"shapes": {"S": {"members": fields}}, "operations": {"Begin": operation}}))
    [(source, text)] = kinds._cloud(tmp_path)
    assert source == "cloud-learning" and text.split() == "Begin Begins it. Name: Its name.".split()


def test_every_specialist_set_is_a_source_of_some_kind():
    assert len(kinds.NEAR) >= 6 and len(kinds.FAR) >= 6
    names = {kind.name for kind in kinds.KINDS}
    assert set(kinds.FAR) <= names
    assert len(names - set(kinds.FAR) - set(kinds.NEAR)) >= 12
    assert {kind.package for kind in kinds.KINDS} <= packages.PACKAGES.keys()


def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="wordnet-base comes from deb"):
        packages.unpacked(packages.PACKAGES["wordnet-base"], tmp_path)


def test_a_kind_is_written_once_and_bounded(tmp_path, monkeypatch):
    reads = []

    def documents(folder):
        reads.append(folder)
        yield from (("dictionary", f"{number} " * 200) for number in range(100))
        yield from (("dictionary-qr", f"{number} " * 200) for number in range(100))
        yield "dictionary", "short"

    monkeypatch.setattr(corpus, "unpacked", lambda package, folder: folder)
    monkeypatch.setattr(corpus, "version", lambda package, folder: "1")
    monkeypatch.setattr(corpus, "MOST_KEPT_OUT", 1000)
    kind = kinds.Kind("dictionary", "dict-gcide", documents)
    facts = corpus.write(kind, tmp_path)
    assert facts == corpus.write(kind, tmp_path) and len(reads) == 1
    rows = [json.loads(row) for row in (tmp_path / "corpus/dictionary.jsonl").read_text().splitlines()]
    assert facts["sources"]["dictionary"]["documents"] == 100
    assert 1 <= facts["sources"]["dictionary-qr"]["documents"] == len(rows) - 100 < 10
    assert all(len(row["text"]) >= corpus.FEWEST_CHARACTERS for row in rows)
