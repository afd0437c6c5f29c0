"""The one writer of a store or a run on S3: an object that only one of several writers can create.

The claim ``publishing.json`` is there before anything else of the store or of an addition, and goes after their last
manifest. So readers that find domains without a manifest know what they see (``mirror.py``). A killed writer leaves its
claim, and goes on with it.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path

from pipeline.places.buckets import Bucket
from pipeline.remote.mirror import CLAIM
from storage_schema.errors import UserError
from storage_schema.json_files import as_object, parse_json
from storage_schema.manifest import StoreError, write_atomically

_WRITER = "writer"


class ClaimedError(StoreError):
    """Another writer has the claim."""


class Claim:
    """The right to write a store or a run.

    Args:
        room: a folder of this machine's, which remembers the writer's name.
    """

    def __init__(self, bucket: Bucket, room: Path):
        self.bucket, self.writer = bucket, _own_name(room / _WRITER)

    def take(self) -> bool:
        """Take the claim. False if this writer has it already, from a run that was killed.

        Raises :class:`ClaimedError` if another writer has it; the message says who.
        """
        mine = {
            "writer": self.writer,
            "attempt": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        content = json.dumps(mine).encode()
        there = self.bucket.create(CLAIM, content)
        if there == content:
            return True
        holder = _parsed(there)
        if holder.get("writer") == self.writer:
            return False
        raise ClaimedError(
            f"{self.bucket.uri} is being written by process {holder.get('process')!r:.20} on "
            f"{holder.get('host')!r:.80} since {holder.get('since')!r:.40}. Wait for it, or use another prefix. If "
            f"nothing writes there any more, remove {self.bucket.uri}/{CLAIM} and run again."
        )

    def drop(self) -> None:
        """Give the claim up. Another writer's, who took it after this one's was removed by hand, stays."""
        there = self.bucket.read(CLAIM)
        if there is not None and _parsed(there).get("writer") == self.writer:
            self.bucket.remove(CLAIM)


def _own_name(path: Path) -> str:
    """The name of the writer in this folder, made at the first call."""
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text("utf-8").strip()


def _parsed(content: bytes) -> dict:
    try:
        return as_object(parse_json(content, CLAIM), CLAIM)
    except UserError:
        return {}
