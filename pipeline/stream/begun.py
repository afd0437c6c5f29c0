"""An iterator that a thread makes, with its first item, while its reader still does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa


class Begun:
    """An iterator that is made in a thread, which also computes its first item."""

    def __init__(self, make: Callable[[], Iterator[pa.Table]]):
        self._begun = ThreadPoolExecutor(1, "first-block").submit(self._begin, make)

    def __iter__(self) -> Iterator[pa.Table]:
        first, items = self._begun.result()
        yield from first
        yield from items

    @staticmethod
    def _begin(make: Callable[[], Iterator[pa.Table]]) -> tuple[list[pa.Table], Iterator[pa.Table]]:
        items = make()
        return list(islice(items, 1)), items
