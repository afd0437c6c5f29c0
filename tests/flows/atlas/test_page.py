"""The atlas page, opened and clicked in headless Chromium; and which page is written when."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from flows.atlas import page as atlas_page
from flows.atlas.page import write_atlas
from flows.cli import main as cli
from storage_schema.domains import DomainStore
from storage_schema.layout import soup_folder
from storage_schema.manifest import StoreError
from storage_schema.stage import open_stage
from tests.extras import chromium
from tests.planted import planted_languages
from tests.toy_store import make_store, write_texts

HOSTILE = (
    '</script><img src="http://127.0.0.1:9/x" onerror="document.title=\'taken\'"><b>bold</b> <!-- <script>'
)
LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def make_specialist(folder, weights: dict[int, float], soup: str = "s" * 64) -> None:
    recipe = {
        "domain_weights": {str(i): h for i, h in weights.items()},
        "coefficients": [0.5],
        "rule": "flat",
    }
    open_stage(folder, kind="specialist", configuration=recipe, inputs={"soup": soup}).finish({})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two clusters of three domains: languages in 0, 1, 3 and 4, hostile text in 5, nothing in 2."""
    languages = planted_languages(4, words=60, seed=5)
    generator = np.random.Generator(np.random.PCG64(1))
    texts = [[one.document(60, generator) for _ in range(12)] for one in languages]
    domains = [texts[0], texts[1], [], texts[2], texts[3], [f"hostile{n} {HOSTILE}" for n in range(8)]]
    folder = write_texts(tmp_path_factory.mktemp("stores") / "plan<b>ted", domains, coarse=2)
    return folder, languages


@pytest.fixture(scope="module")
def pages(store, tmp_path_factory):
    """The store's own page, and one with two specialists."""
    folder = tmp_path_factory.mktemp("specialists") / "both"
    make_specialist(folder / "left", {0: 0.75, 1: 0.25})
    make_specialist(folder / "right", {3: 0.125, 4: 0.875})
    return write_atlas(store[0]), write_atlas(store[0], specialists=folder)


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


class Opened:
    """A page that is open, with what it asked for and what went wrong in it."""

    def __init__(self, browser, path, viewport=LAPTOP, **options):
        self.page = browser.new_page(viewport=viewport, **options)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)

    def words(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def listed(self) -> list[int]:
        """The numbers of the domains in the list."""
        return [int(text[1:]) for text in self.page.locator("#items .number").all_inner_texts()]

    def tile(self, key: str):
        """The map's tile of a domain (d0) or a cluster (c0)."""
        handle = self.page.evaluate_handle(
            "key => [...document.querySelectorAll('#map .slice')].find(s => s.__data__.data.data.id === key)",
            key,
        )
        return handle.as_element()

    def tiles(self, kind: str = "") -> set[str]:
        """The domains and clusters on the map; of those of one kind (found, chosen) only the domains."""
        of = f".{kind}" if kind else ""
        return set(
            self.page.evaluate(
                "s => [...document.querySelectorAll(s)].map(e => e.__data__.data.data.id)", f"#map .slice{of}"
            )
        )

    def click_tile(self, key: str) -> None:
        # A cluster's middle is covered by its domains: its name is at the top.
        box = self.tile(key).bounding_box()
        down = 8 if key[0] == "c" else box["height"] / 2
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + down)


@pytest.fixture()
def opened(browser, pages):
    made = []

    def open_(which=0, **options) -> Opened:
        made.append(Opened(browser, pages[which], **options))
        return made[-1]

    yield open_
    for one in made:
        one.page.close()
        assert not one.errors and all(url.startswith("file:") for url in one.requests), one.errors


def test_every_domain_is_there_and_the_empty_one_says_so(opened, store):
    atlas = opened()
    assert atlas.words("#store") == "plan<b>ted"
    assert "6 domains in 2 clusters" in atlas.words("#summary") and "1 empty" in atlas.words("#summary")
    assert sorted(atlas.listed()) == [0, 1, 2, 3, 4, 5] and atlas.listed()[-1] == 2
    assert "empty: 0 tokens" in atlas.words("#items")
    assert {"c0", "c1", "d0", "d1", "d3", "d4", "d5"} <= atlas.tiles()
    sizes = {key: atlas.tile(key).bounding_box() for key in ("d0", "d5")}
    area = {key: box["width"] * box["height"] for key, box in sizes.items()}
    tokens_K = DomainStore(store[0]).tokens_K
    assert area["d0"] / area["d5"] == pytest.approx(
        tokens_K[0] / tokens_K[5], rel=0.25
    )  # margins are not area


def test_a_click_shows_a_domains_words_numbers_and_passages(opened, store):
    atlas = opened()
    atlas.click_tile("d4")
    text = atlas.words("#domain")
    assert text.count("Domain 4") == 1 and atlas.tiles("chosen") == {"d4"}
    for part in ("What sets it apart", "mean squared distance", "even", "50 %", "Passages near its centre"):
        assert part in text
    words = atlas.page.locator("#domain .chips button").all_inner_texts()
    assert len(words) == 12 and set(words) <= set(store[1][3].words)
    assert atlas.page.locator("#domain pre").count() == 3
    atlas.page.get_by_role("button", name="← List").click()
    assert len(atlas.listed()) == 6 and not atlas.tiles("chosen")


def test_the_search_finds_words_and_sources(opened, store):
    atlas = opened()
    atlas.click_tile("d1")
    word = atlas.page.locator("#domain .chips button").first
    said = word.inner_text()
    word.click()
    assert atlas.page.input_value("#search") == said
    assert atlas.listed() == [1] and atlas.tiles("found") == {"d1"} and "1 found" in atlas.words("#found")
    atlas.page.fill("#search", "EVEN")
    assert sorted(atlas.listed()) == [0, 1, 3, 4, 5]
    atlas.page.fill("#search", "#2")
    assert atlas.listed() == [2]
    atlas.page.locator("#items button").click()
    assert "This domain is empty" in atlas.words("#domain")
    atlas.page.fill("#search", "no such word")
    assert atlas.listed() == [] and "0 found" in atlas.words("#found")
    atlas.page.get_by_role("button", name="← All").click()
    assert len(atlas.listed()) == 6 and not atlas.tiles("faded")


def test_hostile_text_is_shown_as_text(opened, pages):
    atlas = opened()
    atlas.click_tile("d5")
    assert HOSTILE in atlas.page.locator("#domain pre").first.inner_text()
    assert atlas.page.title() == "Domain atlas: plan<b>ted"
    assert atlas.page.locator("img, main b, main script").count() == 0
    html = pages[0].read_text("utf-8")
    assert HOSTILE not in html and "hostile0" in html


def test_no_script_but_ours_runs(opened):
    atlas = opened()
    atlas.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'hit = 1'}))"
    )
    assert atlas.page.evaluate("typeof hit") == "undefined"
    assert len(atlas.errors) == 1 and "Content Security Policy" in atlas.errors.pop()


def test_a_cluster_is_enlarged_and_left_again(opened):
    atlas = opened()
    atlas.click_tile("c1")
    atlas.page.wait_for_function("() => document.querySelectorAll('#map .slice').length <= 4")
    assert "Cluster 1" in atlas.words("#zoomed") and sorted(atlas.listed()) == [3, 4, 5]
    atlas.click_tile("d3")
    assert "Domain 3" in atlas.words("#domain")
    atlas.page.get_by_role("button", name="← The whole map").click()
    atlas.page.wait_for_function("() => document.querySelectorAll('#map .slice').length > 6")


def test_it_can_be_used_with_the_keyboard_alone(opened):
    atlas = opened()
    page = atlas.page
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    assert "Domain 0" in atlas.words("#domain") and atlas.tiles("chosen") == {"d0"}
    page.keyboard.press("ArrowLeft")
    assert "Domain 5" in atlas.words("#domain")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#map .slice').length <= 4")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelectorAll('#map .slice').length > 6")
    assert page.locator("#list").is_visible() and len(atlas.listed()) == 6
    page.locator("#items button").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent").startswith("Domain ")


def test_the_weights_of_specialists_lie_over_the_map(opened):
    atlas = opened(1)
    colours = "() => Object.fromEntries([...document.querySelectorAll('#map .slice')].map(s =>"
    colours += " [s.__data__.data.data.id, getComputedStyle(s.querySelector('path.surface')).fill]))"
    left = atlas.page.evaluate(colours)
    assert atlas.listed()[:2] == [0, 1] and "h 0.75" in atlas.words("#items li:first-child")
    assert left["d0"] != left["d3"] == left["d4"]
    atlas.page.select_option("#measure", label="weight h of right")
    atlas.page.wait_for_function(f"before => ({colours})()['d4'] !== before", arg=left["d4"])
    assert atlas.listed()[:2] == [4, 3] and atlas.page.evaluate(colours)["d4"] == left["d0"]
    atlas.click_tile("d4")
    assert "right" in atlas.words("#domain") and "0.875" in atlas.words("#domain")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_panel_is_below_the_map(opened, scheme):
    atlas = opened(1, viewport=PHONE, color_scheme=scheme, has_touch=True)
    page = atlas.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box, panel = page.locator("#map").bounding_box(), page.locator("#panel").bounding_box()
    assert box["width"] > 350 and panel["y"] >= box["y"] + box["height"]
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", back)[:3])) / 3
    assert lightness > 200 if scheme == "light" else lightness < 60
    tile = atlas.tile("d4").bounding_box()
    page.touchscreen.tap(tile["x"] + tile["width"] / 2, tile["y"] + tile["height"] / 2)
    page.get_by_role("heading", name="Domain 4").wait_for()
    page.wait_for_function("() => document.querySelector('#panel').getBoundingClientRect().top < 400")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_it_opens_at_the_domain_its_address_names(browser, pages):
    page = browser.new_page()
    page.goto(pages[0].as_uri() + "#3")
    page.get_by_role("heading", name="Domain 3").wait_for()
    page.close()


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
