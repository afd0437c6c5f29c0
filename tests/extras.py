"""Tests against other people's code: without it they are skipped, aloud; where SOE_CI is set they fail."""

import os
import shutil
from importlib.util import find_spec

import pytest


def needs(package: str, *, extra: str) -> None:
    """Skip the test, or fail it where SOE_CI is set, unless `package` can be imported."""
    if find_spec(package) is None:
        _missing(f"{package} is not installed: pip install -c constraints.txt -e .[{extra}]")


def needs_program(name: str) -> None:
    """Skip the test, or fail it where SOE_CI is set, unless the program is on the path."""
    if shutil.which(name) is None:
        _missing(f"there is no program {name} on the path: install it.")


def _missing(message: str) -> None:
    if os.environ.get("SOE_CI"):
        pytest.fail(f"SOE_CI is set, but {message}")
    pytest.skip(message)
