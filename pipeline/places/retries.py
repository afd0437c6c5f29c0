"""Reads from elsewhere that are tried again, ever later."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.places.locations import explain
from storage_schema.manifest import StoreError, UnavailableError

ATTEMPTS = 5
"""Of each read, beside those that the S3 client makes of each of its requests (``locations.py``): a server that
does not answer at all is given up within three minutes."""
FIRST_DELAY = 0.2
"""Seconds before the second attempt, doubled for each one after, and spread by half either way."""
T = TypeVar("T")


def with_retries(
    read: Callable[[], T],
    *,
    uri: str,
    store: str,
    label: str = "",
    what: str = "The store",
    failed: Callable[[], None] | None = None,
) -> T:
    """The result of `read`, which is called again, ever later, when it raises OSError.

    Args:
        uri: the file's name, and `store`: the name of `what` it is of, for the error.
        failed: called after each failed attempt.

    Raises:
        StoreError: the file is missing (at once).
        UnavailableError: it could not be read in :data:`ATTEMPTS` attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except FileNotFoundError as error:
            raise StoreError(
                f"{label}{uri} is missing. Copy the whole of a finished store there, or check the name."
            ) from error
        except OSError as error:
            if failed:
                failed()
            if attempt == ATTEMPTS:
                raise UnavailableError(
                    f"{label}cannot read {uri} after {attempt} attempts: {explain(store, error, what=what)}"
                ) from error
        time.sleep(FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def all_of(data: bytes, size: int) -> bytes:
    """`data`, of which there must be `size`: raises OSError otherwise, as of any read that failed."""
    if len(data) != size:
        raise OSError(f"{len(data)} of {size} bytes came")
    return data
