"""Errors whose message is for the user: it names the value, the bound and the way out, and is shown as one line.

Any other error, including a ValueError of a library, is a fault of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """A value that a user gave, or a file on disk, is not valid."""
