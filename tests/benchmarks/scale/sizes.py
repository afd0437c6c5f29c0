"""What is measured: the cells of each size. A cell is one corpus, and what is done with it in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement."""

    name: str
    kind: Literal["store", "corpus", "additions", "encoder"]
    """``store``: every stage. ``corpus``: those that see the corpus's files. ``additions``: a store, then additions.
    ``encoder``: those that see the files, and the real embeddings, through the actors that a large store has.
    """
    passages: int
    files: int
    additions: int = 0
    added: int = 0
    """Passages per addition."""
    clusters: int
    """Coarse nodes, and leaves per node."""
    sample: int
    """Each node of the tree is fitted on at most so many passages."""
    characters: int = 2_000_000
    """The tokenizer is trained on so much text."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


CHARACTERS = 1000
"""Of a passage, about; each is a document of its own. So 10^9 of them are a terabyte."""
STORES = {"small": (4_000, 16_000, 64_000), "real": (100_000, 400_000, 1_600_000)}
FILES = (10, 1_000, 100_000)
FILE_PASSAGES = 100_000
"""In the cells that differ by their number of files only."""
LARGE_BYTES = {"small": 128 << 20, "real": 5_000_000_000}
ADDITIONS = {"small": (4, 500), "real": (64, 1_000)}
TREE = {"small": (16, 4_000), "real": (64, 100_000)}
"""Clusters and sample. The sample is the smallest store, so that fitting the root does not grow with the store."""
TOKENIZER_SHARE = {"small": 2, "real": 10}
"""Of a store's text the tokenizer is trained on one part of so many: at the real sizes up to nearly the default."""
ENCODED = {"small": 1_000, "real": 4_000}
STORE_FILE = 4_000
"""Passages per file in the stores' corpora."""


def cells(size: str, *, large_bytes: int | None = None, additions: int | None = None) -> list[Cell]:
    """The cells of a size, the shortest first.

    Args:
        size: ``small`` (minutes) or ``real`` (hours).
        large_bytes: of the one large file; None: that of the size.
        additions: how many there are; None: as many as the size has.
    """
    clusters, sample = TREE[size]
    tree = {"clusters": clusters, "sample": sample}
    share = TOKENIZER_SHARE[size]
    number, added = ADDITIONS[size]
    number = number if additions is None else additions
    large = large_bytes or LARGE_BYTES[size]
    found = [
        Cell(
            name=f"store-{passages}",
            kind="store",
            passages=passages,
            files=-(-passages // STORE_FILE),
            characters=passages * CHARACTERS // share,
            **tree,
        )
        for passages in STORES[size]
    ]
    first = STORES[size][0]
    found.append(
        Cell(
            name=f"additions-{number}",
            kind="additions",
            passages=first,
            files=-(-first // STORE_FILE),
            additions=number,
            added=added,
            **tree,
        )
    )
    found += [
        Cell(name=f"files-{files}", kind="corpus", passages=FILE_PASSAGES, files=files, **tree)
        for files in FILES
    ]
    encoded = ENCODED[size]
    found.append(Cell(name=f"encoder-{encoded}", kind="encoder", passages=encoded, files=4, **tree))
    found.append(Cell(name=f"large-{large}", kind="corpus", passages=large // CHARACTERS, files=1, **tree))
    return found
