"""Errors whose message is for the user: it names the value, the bound and the way out, a line at every door.

Any other error, a ValueError of a library included, is a fault of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """A value that a user gave, or something on disk, is not what it must be."""
