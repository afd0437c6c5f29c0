"""What is published of a store's domains: the card, the table and the atlas."""

from __future__ import annotations

import json

from flows.atlas.page import write_atlas
from flows.prefect_flows import domain_artifacts as artifacts
from flows.store_build import store_builder as domain_stages
from flows.store_build.store_builder import draw_atlas
from pipeline.corpus.accounts import Tally, account
from storage_schema.domains import DomainStore
from storage_schema.layout import DOMAIN_WORDS
from storage_schema.stage import open_stage
from tests.flows.prefect_flows.test_result_artifacts import pictures
from tests.toy_store import make_store


def test_the_domains_card_and_table(tmp_path):
    store = DomainStore(make_store(tmp_path / "store", [300, 0, 1000, 700]))
    card = artifacts.domains_card(store)
    assert "4 domains of 3 passages and 2,000 tokens; 1 are empty" in card
    assert store.digest in card and pictures(card)[0].startswith(b"\x89PNG")
    # Windows of 128: 2, 0, 7 and 5 of them; of 512: 0, 0, 1 and 1.
    assert "| tokens lost to tails | 10.40% | 48.80% | 100.00% | 100.00% |" in card
    assert "| domains without a window | 1 | 2 | 4 | 4 |" in card
    assert "What was read" not in card  # a store made before there were accounts
    rows = artifacts.domains_table(store)
    assert [row["domain"] for row in rows] == [2, 3, 0]
    assert rows[0]["tokens"] == 1000 and rows[0]["share"] == "50.00 %" and rows[0]["mostly"] == "toy (100%)"
    json.dumps(rows)


def test_the_domains_card_says_what_was_lost(tmp_path):
    folder = make_store(tmp_path / "store", [300])
    bad = Tally(
        documents_read=9, documents=7, passages_cut=8, bad={"not JSON": 2}, bad_named=["a.jsonl:3: why"]
    )
    passages = {"passages": 7, "train_duplicates_dropped": 1}
    counts = account(bad, {"trained on": 7}, passages, {".tsv": 3}) | passages
    stage = open_stage(folder / "passages", kind="passages", configuration={}, inputs={}, rebuild=True)
    stage.finish(counts)
    card = artifacts.domains_card(DomainStore(folder))
    assert "9 documents: 7 trained on, 2 bad: not JSON." in card
    assert "8 passages: 7 trained on, 1 train duplicates." in card
    assert "2 bad documents. First: a.jsonl:3: why." in card and "Files that were not read: 3 .tsv." in card


def test_the_atlas_is_linked_and_its_path_is_said(tmp_path, monkeypatch):
    published = {}
    for kind in ("markdown", "table", "link"):
        name = f"create_{kind}_artifact"
        monkeypatch.setattr(
            artifacts, name, lambda body, *, kind=kind, **rest: published.update({kind: (body, rest)})
        )
    folder = make_store(tmp_path / "store", [300, 0, 1000, 700])
    artifacts.publish_domains(str(folder))
    assert sorted(published) == ["markdown", "table"] and "atlas.html" not in published["markdown"][0]
    atlas = write_atlas(folder)
    artifacts.publish_domains(str(folder))
    link, rest = published["link"]
    assert link == atlas.as_uri() and rest["link_text"] == str(atlas) and rest["key"] == "domains-store-atlas"
    assert str(atlas) in rest["description"] and str(atlas) in published["markdown"][0]


def test_an_atlas_of_fewer_domains_does_not_stay_beside_too_many(tmp_path, monkeypatch):
    folder = make_store(tmp_path / "store", [300, 200])
    assert draw_atlas(folder) is not None and (folder / DOMAIN_WORDS).exists()
    monkeypatch.setattr(domain_stages, "MOST_DOMAINS", 1)
    assert draw_atlas(folder) is None
    assert not (folder / "atlas.html").exists() and not (folder / DOMAIN_WORDS).exists()
