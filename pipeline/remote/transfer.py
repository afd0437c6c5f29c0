"""Files to or from elsewhere, several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from pipeline.tasks import Report

THREADS = 8
"""Files at once. Memory of sending: two parts of each are under way (``places/buckets.py``), 128 MiB in all."""
MB = 1_000_000
Item = TypeVar("Item")


def transfer(one: Callable[[Item], object], items: Sequence[tuple[Item, int]], report: Report) -> None:
    """Call `one` on each item in threads.

    Args:
        items: each with its bytes.
        report: progress in megabytes.

    Raises:
        Exception: the first error of `one`. It, and an interrupt too, keeps from beginning what was not begun.
    """
    total, done = sum(size for _, size in items), 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="transfer") as pool:
        sizes = {pool.submit(one, item): size for item, size in items}
        try:
            for future in as_completed(sizes):
                future.result()
                done += sizes[future]
                report(-(-done // MB), -(-total // MB))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
