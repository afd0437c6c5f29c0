"""Held-out text as specialist sets, of any number of documents."""

import polars as pl
import pytest

from pipeline.specialists.held_out import _split


@pytest.mark.parametrize("sizes", [[500], [2, 3, 300], [109, *[3] * 5]])
def test_a_held_out_source_that_is_mostly_one_document_is_shared(sizes):
    """It has enough passages, so it is a set, whichever document comes first by its hash."""
    for first in range(8):
        rows = [(f"{first} {d}", f"{d} {n}") for d, size in enumerate(sizes) for n in range(size)]
        frame = pl.DataFrame(rows, schema=["document_id", "text"], orient="row")
        made = _split("s", frame, 200, 20, unseen_source=True)
        assert made is not None and len(made.evaluation) == 20 and len(made.texts) >= 20
        assert not set(made.texts) & set(made.evaluation)
