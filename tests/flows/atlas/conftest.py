"""A store of two clusters, and its two pages."""

from __future__ import annotations

import numpy as np
import pytest

from flows.atlas.page import write_atlas
from tests.flows.atlas.toy_atlas import HOSTILE, make_specialist
from tests.planted import planted_languages
from tests.toy_store import write_texts


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Two clusters of three domains: languages in 0, 1, 3 and 4, hostile text in 5, nothing in 2."""
    languages = planted_languages(4, words=60, seed=5)
    generator = np.random.Generator(np.random.PCG64(1))
    texts = [[one.document(60, generator) for _ in range(12)] for one in languages]
    domains = [texts[0], texts[1], [], texts[2], texts[3], [f"hostile{n} {HOSTILE}" for n in range(8)]]
    folder = write_texts(tmp_path_factory.mktemp("stores") / "plan<b>ted", domains, coarse=2)
    return folder, languages


@pytest.fixture(scope="session")
def pages(store, tmp_path_factory):
    """The store's own page, and one with two specialists."""
    folder = tmp_path_factory.mktemp("specialists") / "both"
    make_specialist(folder / "left", {0: 0.75, 1: 0.25})
    make_specialist(folder / "right", {3: 0.125, 4: 0.875})
    return write_atlas(store[0]), write_atlas(store[0], specialists=folder)
