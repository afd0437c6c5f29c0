"""A small soup with a real embedder, for the commands for specialists; a played server, for those that ask one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from pipeline.embeddings import embedder
from tests.flows.cli.played_server import known, server  # noqa: F401  (fixtures)
from tests.flows.cli.specialist_commands import ALGORITHM_3, run
from tests.served_soup import make_served_soup, sentences

load_once = cache(embedder.load_embedder)


@contextmanager
def one_embedder() -> Iterator[None]:
    """The same one is loaded once for all commands of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "load_embedder", load_once)
        yield


@pytest.fixture(scope="session")
def small_soup(tmp_path_factory):
    """Trained a little, so that its specialists differ."""
    return make_served_soup(tmp_path_factory.mktemp("home") / "soups" / "small", steps=30)


@pytest.fixture(scope="module")
def soup(small_soup):
    with one_embedder():
        yield small_soup


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """24 sentences of two topics, a file each."""
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate([*sentences("cooking", 16), *sentences("sailing", 8)]):
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def made(small_soup, texts, tmp_path_factory):
    """By Algorithm 3."""
    out = tmp_path_factory.mktemp("made") / "kitchen"
    with one_embedder():
        assert run("specialize", small_soup, "--texts", texts, "--out", out, *ALGORITHM_3) == 0
    return out
