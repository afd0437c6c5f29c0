"""The page of `soe serve` in a browser."""

from __future__ import annotations

import json
import zipfile

import pytest

from tests.extras import chromium, screenshot
from tests.served_soup import sentences

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture()
def opened(browser, service):
    """Opens the page as the terminal says; at the end it must have asked nobody else, and complained of nothing."""
    pages, problems, asked = [], [], []

    def open_(**options):
        page = browser.new_context(accept_downloads=True, **options).new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.page)
        page.wait_for_selector("body[data-ready]")
        pages.append(page)
        return page

    open_.problems = problems
    yield open_
    for page in pages:
        page.context.close()
    assert not problems and all(url.startswith((service.url, "data:", "blob:")) for url in asked), problems


def paste_and_make(page) -> None:
    page.fill("#texts", "\n\n".join([*sentences("cooking", 9), *sentences("law", 5)]))
    page.get_by_role("button", name="Make a specialist").click()
    page.wait_for_selector("#result:not([hidden])", timeout=15_000)


def test_the_page_from_texts_to_a_model(opened, tmp_path):
    page = opened(viewport=LAPTOP)
    assert "token" not in page.url and page.title() == "Specialists of topics"
    assert "8 experts · 8 domains" in page.inner_text("#summary") and page.locator("#map circle").count() == 8
    page.get_by_role("button", name="Make a specialist").click()
    assert "There is no text yet" in page.inner_text("#make-error")
    paste_and_make(page)
    assert page.locator("#make-error").is_hidden() and "Only 12 texts" in page.inner_text("#warnings")
    rows = page.locator("#h tr").all_inner_texts()
    assert [row.split()[1] for row in rows] == ["cooking", "law"]
    assert "8 domains, from 12 passages (entropy 0.6" in page.inner_text("#h-caption")
    assert page.locator("#map circle.weight").count() == 2
    shares = [float(value) for value in page.locator("#losses .value").all_inner_texts()]
    assert len(shares) == 2 and all(1 < loss < 12 for loss in shares)
    assert page.inner_text("#verdict").startswith(("Gain", "No sure gain", "No gain"))
    page.fill("#prompt", "<b>simmer</b> the")
    page.fill("#tokens", "20")
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector("#written:not([hidden])")
    for half in ("#by-specialist", "#by-generic"):
        text = page.inner_text(half)
        assert text.startswith("<b>simmer</b> the") and len(text) > 22
    assert page.locator("#written b").count() == 0
    page.fill("#prompt", "the " * 70)
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector("#write-error:not([hidden])")
    assert "64 positions" in page.inner_text("#write-error")
    assert "400" in opened.problems.pop()  # Chromium reports what we asked for
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the model").click()
    download.value.save_as(tmp_path / "model.zip")
    assert any(
        name.endswith("model.safetensors") for name in zipfile.ZipFile(tmp_path / "model.zip").namelist()
    )
    recipe = json.loads(page.locator("#recipe").text_content())
    assert recipe["kind"] == "specialist" and len(recipe["configuration"]["coefficients"]) == 8
    screenshot(page, "laptop", full_page=True)


def test_the_page_reads_files_and_is_used_with_the_keyboard(opened):
    page = opened(viewport=LAPTOP)
    paste_and_make(page)
    notes = "\n".join(sentences("astronomy"))
    page.fill("#texts", "")
    page.set_input_files("#files", [
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": notes.encode()},
        {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\x00\x01"},
    ])  # fmt: skip
    page.wait_for_selector("#file-list button")
    assert "photo.jpg is not a text file" in page.inner_text("#make-error")
    assert "1 text" in page.inner_text("#count")
    page.locator("#make-button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#h :text('astronomy')", timeout=15_000)
    assert "none could be kept apart" in page.inner_text("#verdict")
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#map-said').innerText.startsWith('Domain ')")
    assert page.inner_text("#map-said").startswith("Domain 1: astronomy") and "h 1.000" in page.inner_text(
        "#map-said"
    )
    page.wait_for_function("() => document.querySelectorAll('#made button')[0]?.ariaCurrent === 'true'")
    page.locator("#made button").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#made button')[1].ariaCurrent === 'true'")


def test_files_are_dropped_on_the_page(opened):
    """A drop that the page does not take as its own would open the file in its place."""
    page = opened(viewport=LAPTOP)
    dragged = page.evaluate_handle(
        """text => {
          const dragged = new DataTransfer();
          dragged.items.add(new File([text], "notes.txt", { type: "text/plain" }));
          return dragged;
        }""",
        "\n".join(sentences("astronomy")),
    )
    page.evaluate("addEventListener('drop', (event) => { window.taken = event.defaultPrevented; })")
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": dragged})
    assert page.locator("#drop.over").count() == 1
    page.dispatch_event("#drop-text", "drop", {"dataTransfer": dragged})
    page.wait_for_selector("#file-list button")
    assert "notes.txt" in page.inner_text("#file-list") and "1 text" in page.inner_text("#count")
    assert page.locator("#drop.over").count() == 0 and page.evaluate("window.taken")
    page.get_by_role("button", name="Make a specialist").click()
    page.wait_for_selector("#result:not([hidden])", timeout=15_000)
    assert "astronomy" in page.inner_text("#h")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(opened, scheme):
    page = opened(viewport=PHONE, color_scheme=scheme, has_touch=True)
    screenshot(page, f"phone-empty-{scheme}", full_page=True)
    paste_and_make(page)
    page.locator("#map circle.weight").last.tap()
    assert "h 0." in page.inner_text("#map-said")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    texts, result = page.locator("#texts").bounding_box(), page.locator("#losses").bounding_box()
    made = page.locator("#made").bounding_box()
    assert texts["y"] < result["y"] < made["y"]
    screenshot(page, f"phone-{scheme}", full_page=True)
