"""The atlas page, opened and clicked in headless Chromium."""

from __future__ import annotations

import re

import pytest

from storage_schema.domains import DomainStore
from tests.extras import chromium
from tests.flows.atlas.toy_atlas import HOSTILE

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


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
