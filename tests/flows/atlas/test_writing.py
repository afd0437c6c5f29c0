"""Which atlas page is written when, of what, and what it may hold."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from flows.atlas import page as atlas_page
from flows.atlas.page import write_atlas
from flows.cli import main as cli
from storage_schema.domains import DomainStore
from storage_schema.layout import soup_folder
from storage_schema.manifest import StoreError
from storage_schema.stage import open_stage
from tests.flows.atlas.toy_atlas import HOSTILE, make_specialist
from tests.toy_store import make_store


def test_a_page_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    folder = make_store(tmp_path / "store", [300, 0, 1000])
    path = write_atlas(folder)
    assert path == folder / "atlas.html"
    before = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.delattr(atlas_page, "collect_atlas")
        assert write_atlas(folder) == path
    assert path.stat().st_mtime_ns == before
    shutil.rmtree(folder / "domains")
    shutil.rmtree(folder / "tokenizer")
    shutil.rmtree(folder / "embeddings")
    make_store(folder, [300, 500, 1000])
    write_atlas(folder)
    assert path.stat().st_mtime_ns != before
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_the_page_names_no_address_of_a_network(pages):
    html = pages[0].read_text("utf-8")
    ours = html[: html.index('<script type="application/json"')] + "".join(
        (atlas_page.PAGE_FILES / name).read_text("utf-8") for name in atlas_page.SCRIPTS
    )
    assert not re.findall(r"https?://|//cdn|src=|href=", ours)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_the_embedded_json_survives_a_script_element():
    value = {"a": [HOSTILE, "\u2028&amp;\\u003c", None, 1.5]}
    text = atlas_page.embedded_json(value)
    assert not set("<>&\u2028") & set(text) and json.loads(text) == value


def test_specialists_of_other_domains_are_refused(store, tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    opened = DomainStore(store[0])
    with pytest.raises(StoreError, match="no specialist at .*nobody"):
        atlas_page.read_specialists(tmp_path / "nobody", opened)
    make_specialist(tmp_path / "far", {6: 1.0})
    with pytest.raises(
        StoreError, match="far is a specialist of a soup of other domains.*its soup was trained on"
    ):
        atlas_page.read_specialists(tmp_path / "far", opened)
    for name, domains in (("ours", opened.digest), ("other", "d" * 64)):
        stage = open_stage(soup_folder(name), kind="soup", configuration={}, inputs={"domains": domains})
        make_specialist(tmp_path / f"of-{name}", {0: 1.0}, soup=stage.finish({}).digest)
    assert atlas_page.read_specialists(tmp_path / "of-ours", opened) == {"of-ours": {0: 1.0}}
    with pytest.raises(StoreError, match="of-other is a specialist of a soup of other domains"):
        atlas_page.read_specialists(tmp_path / "of-other", opened)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    folder = make_store(tmp_path / "stores" / "mine", [300, 1000])
    make_specialist(tmp_path / "specialists" / "notes" / "letters", {1: 1.0})
    assert cli.main(["atlas", "mine"]) == 0 and (folder / "atlas.html").exists()
    assert (
        cli.main(["atlas", "mine", "--specialist", "notes"]) == 0 and (folder / "atlas-notes.html").exists()
    )
    assert str(folder / "atlas-notes.html") in capsys.readouterr().out
    assert cli.main(["atlas", "mine", "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()
    assert cli.main(["atlas", "nothing"]) == 1
    assert "error: no domains at" in capsys.readouterr().err
    assert cli.main(["atlas", "mine", "--out", str(tmp_path / "no" / "page.html")]) == 1
    assert "error: " in capsys.readouterr().err


def test_more_domains_than_a_page_can_show(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas_page, "MOST_DOMAINS", 2)
    with pytest.raises(ValueError, match="has 3 domains; a page shows at most 2"):
        write_atlas(make_store(tmp_path / "store", [300, 0, 1000]))
