"""Tests against other people's code: without it they are skipped, aloud; where SOE_CI is set they fail."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest


def needs(package: str, *, extra: str) -> None:
    """Skip the test, or fail it where SOE_CI is set, unless `package` can be imported."""
    if find_spec(package) is None:
        missing(f"{package} is not installed: pip install -c constraints.txt -e .[{extra}]")


def needs_program(name: str) -> None:
    """Skip the test, or fail it where SOE_CI is set, unless the program is on the path."""
    if shutil.which(name) is None:
        missing(f"there is no program {name} on the path: install it.")


def needs_root() -> None:
    """Skip the test, or fail it where SOE_CI is set, unless it may change the machine's network or user."""
    if os.geteuid() != 0:
        missing("the tests do not run as root.")


@contextmanager
def chromium() -> Iterator:
    """The system's Chromium, driven by Playwright; skip the test, or fail it where SOE_CI is set, without one."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing("there is no Chromium on this machine (Debian's package is `chromium`).")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        yield browser
        browser.close()


def screenshot(page, name: str, *, full_page: bool = False) -> None:
    """For a person to look at: `SOE_SCREENSHOTS=folder`."""
    if folder := os.environ.get("SOE_SCREENSHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=f"{folder}/{name}.png", full_page=full_page, timeout=120_000)


def missing(message: str) -> None:
    """Skip the test with the message, or fail it where SOE_CI is set."""
    if os.environ.get("SOE_CI"):
        pytest.fail(f"SOE_CI is set, but {message}")
    pytest.skip(message)
