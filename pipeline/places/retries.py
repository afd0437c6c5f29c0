"""Trying a failed read from elsewhere again, after a longer wait each time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.places.locations import explain
from storage_schema.manifest import StoreError, UnavailableError

ATTEMPTS = 5
"""Attempts per read. The S3 client also repeats each of its requests (``locations.py``), so a server that does not
answer is given up within three minutes."""
FIRST_DELAY = 0.2
"""Seconds before the second attempt. The wait doubles for each further attempt and varies by half either way."""
T = TypeVar("T")


def with_retries(
    read: Callable[[], T],
    *,
    uri: str,
    store: str,
    what: str = "The store",
    failed: Callable[[], None] | None = None,
) -> T:
    """Call `read` and return its result. If it raises OSError, it is called again, after a longer wait each time.

    Args:
        uri: the file's name, for the error.
        store: the name of the store or corpus that the file belongs to, for the error.
        what: ``The store``, ``The soup`` or ``The corpus``, for the error.
        failed: called after each failed attempt.

    Raises:
        StoreError: the file is missing; it is not tried again.
        UnavailableError: the file could not be read in :data:`ATTEMPTS` attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except FileNotFoundError as error:
            raise StoreError(
                f"{uri} is missing. Copy the whole of a finished {what.split()[-1]} there, or check the name."
            ) from error
        except OSError as error:
            if failed:
                failed()
            if attempt == ATTEMPTS:
                raise UnavailableError(
                    f"cannot read {uri} after {attempt} attempts: {explain(store, error, what=what)}"
                ) from error
        time.sleep(FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def require_all(data: bytes, size: int) -> bytes:
    """Return `data` if it has `size` bytes; else raise OSError, as any failed read does."""
    if len(data) != size:
        raise OSError(f"{len(data)} of {size} bytes came")
    return data
