"""The HTTP client for the servers that we run ourselves. httpx is imported when it is first used: that takes time."""

from __future__ import annotations

import ssl
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


@cache
def http_client() -> httpx.Client:
    """The client of this process.

    Passwords and tokens go to the named server only: the client takes no proxy from the environment and follows no
    redirect. It keeps no connection open, since the server may restart between two requests.
    """
    import httpx

    return httpx.Client(
        trust_env=False,
        follow_redirects=False,
        verify=ssl.create_default_context(),  # the system's certificates; httpx brings others
        limits=httpx.Limits(max_keepalive_connections=0),
    )
