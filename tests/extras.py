"""Tests against other people's code: without it they are left out, and the run's last line says what they need (see
tests/lacking.py); where SOE_CI is set they fail."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

LACKING = "needs what is not here: "
"""How the reason begins for which such a test is skipped."""


def needs(package: str, *, extra: str) -> None:
    """Leave the test out, or fail it where SOE_CI is set, unless `package` can be imported.

    Of a whole file: ``pytestmark = pytest.mark.needs(package, extra=extra)``.
    """
    if find_spec(package) is None:
        missing(f"the extra {extra}", f".venv/bin/pip install -c constraints.txt -e .[{extra}]")


def needs_program(name: str, *, package: str | None = None) -> None:
    """Leave the test out, or fail it where SOE_CI is set, unless the program is on the path."""
    if shutil.which(name) is None:
        missing(name, f"Debian's package {package or name}")


def needs_compiled(module: str) -> None:
    """Leave the test out, or fail it where SOE_CI is set, unless our C code was compiled at the installation."""
    if find_spec(module) is None:
        missing("a C compiler", "Debian's package gcc, then .venv/bin/pip install -e .")


def needs_root() -> None:
    """Leave the test out, or fail it where SOE_CI is set, unless it may change the machine's network or user."""
    if os.geteuid() != 0:
        missing("root", "run the tests as root in a container")


@contextmanager
def chromium() -> Iterator:
    """The system's Chromium, driven by Playwright; without one the test is left out, or fails where SOE_CI is set."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing("Chromium", "Debian's package chromium")
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


def missing(what: str, how: str) -> None:
    """Leave the test out, or fail it where SOE_CI is set: it needs `what`, which one gets by `how`."""
    if os.environ.get("SOE_CI"):
        pytest.fail(f"SOE_CI is set, and the test {LACKING}{what}: {how}")
    pytest.skip(f"{LACKING}{what}: {how}")
