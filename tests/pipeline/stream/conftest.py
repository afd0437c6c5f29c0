"""The toy store that the stream is tested on."""

from __future__ import annotations

import pytest

from tests.toy_store import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), [400, 0, 17, 16, 900, 333])
