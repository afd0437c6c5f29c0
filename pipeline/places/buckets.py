"""Writing to ``s3://bucket/prefix``. An object appears whole or not at all, and on request only if its name is free.

Reading goes through ``pyarrow.fs`` (``locations.py``), which cannot write under that condition; obstore can. obstore
takes credentials from the environment or from the machine's role, and does not read profiles. It signs the sha256 of
what it sends, so the server refuses what was changed on the way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore import exceptions
from obstore.store import S3Store

from pipeline.places.locations import CONNECT_SECONDS, S3, endpoint_words, s3_place
from storage_schema.aside import written_aside
from storage_schema.errors import UserError
from storage_schema.json_files import JSON_BYTES
from storage_schema.manifest import StoreError, UnavailableError, file_digest

PART_BYTES = 8 << 20
"""A larger file is sent in parts of this size. A request ends within :data:`REQUEST_SECONDS`: this takes 0.6 Mbit/s."""
MOST_PARTS = 9000
"""S3 takes 10,000; the parts of a file of more than 70 GiB are larger."""
PARTS_AT_ONCE = 2
"""Of one file."""
REQUEST_SECONDS, RETRY_SECONDS, RETRIES = 120.0, 60.0, 5
"""A server that refuses connections or answers with errors is given up after RETRY_SECONDS, and one that accepts
requests and does not answer after REQUEST_SECONDS."""
DIGEST = "sha256"
"""The metadata of an object that holds the digest of its content."""
CREATE_ATTEMPTS, CREATE_SECONDS = 5, 0.2
"""How often, and how long apart, an object is created whose name is taken and which is not there: S3 answers so to a
write that meets a removal."""
_URL = re.compile(r"https?://\S+")
_NO_CREDENTIALS = re.compile(r"https?://[^/\s]+/latest/(api/token|meta-data)|Missing (Secret)?AccessKey")
"""A request for the credentials of the machine's role, or one of the two variables without the other."""
_REGION = re.compile(r"\b30[17]\b|AuthorizationHeaderMalformed|configured region")
_UNREACHABLE = re.compile(r"error sending request|timed out|connection|dns", re.IGNORECASE)


class Bucket:
    """The objects below an ``s3://`` URI, by their names relative to it. Threads may share it.

    Every method raises :class:`StoreError` if the bucket is missing or refuses the credentials, and
    :class:`UnavailableError` if the server cannot be reached or answers with errors.

    Raises:
        StoreError: of the access key and its secret only one is set.
        ValueError: the URI is none, as :func:`~pipeline.places.locations.open_filesystem` says, or has empty names.
    """

    def __init__(self, uri: str):
        if not uri.startswith(S3):
            raise UserError(f"{uri!r} cannot be written: of places elsewhere only {S3} is. Give a path.")
        place = s3_place(uri, what="The place")
        self.uri, self.bucket = uri.rstrip("/"), place.bucket
        if {"", ".", ".."} & set(place.path.split("/")) and place.path:
            raise UserError(
                f"{uri!r} cannot be written: a name in it is empty, '.' or '..'. Give s3://bucket/prefix."
            )
        with self._errors(""):
            self._objects = S3Store(
                place.bucket,
                prefix=place.path or None,
                endpoint=f"{place.scheme}://{place.host}" if place.host else None,
                region=place.region,
                client_options={
                    "allow_http": place.scheme == "http",
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                    "timeout": timedelta(seconds=REQUEST_SECONDS),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )

    def sizes(self, below: str = "") -> dict[str, int]:
        """The bytes of every object below a folder, by its name."""
        with self._errors(below):
            listed = obstore.list(self._objects, f"{below.strip('/')}/" if below else None)
            return {entry["path"]: entry["size"] for entries in listed for entry in entries}

    def digest(self, name: str) -> str | None:
        """The sha256 with which :meth:`upload` wrote the object; None if there is none, or another program wrote it."""
        with self._errors(name):
            try:
                found = obstore.get(self._objects, name, options={"head": True}).attributes
            except FileNotFoundError:
                return None
        return _sha256_in(found)

    def read(self, name: str) -> bytes | None:
        """A small object's content; None if there is none."""
        with self._errors(name):
            try:
                found = obstore.get(self._objects, name)
                if found.meta["size"] > JSON_BYTES:
                    raise StoreError(
                        f"{self.uri}/{name} has {found.meta['size']:,} bytes: it is none of our files."
                    )
                return bytes(found.bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def download(self, name: str, path: Path) -> None:
        """Write an object's content to a file, whose folder is made. The sha256 is checked if it was sent with it."""
        with self._errors(name):
            found = obstore.get(self._objects, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as aside:
                with open(aside, "wb") as file:
                    for piece in found.stream(min_chunk_size=PART_BYTES):
                        file.write(piece)
                if _sha256_in(found.attributes) not in (None, file_digest(aside)):
                    raise StoreError(
                        f"{self.uri}/{name} is not what was sent there. Remove it, and run again."
                    )

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        """Send a file, a few parts at a time. An object of that name is replaced once the new one is whole."""
        size = path.stat().st_size
        with self._errors(name):
            obstore.put(
                self._objects,
                name,
                path,
                attributes={DIGEST: sha256},
                chunk_size=max(PART_BYTES, -(-size // MOST_PARTS)),
                max_concurrency=PARTS_AT_ONCE,
            )

    def create(self, name: str, content: bytes) -> bytes:
        """Write a small object if there is none of that name. Returns what is there then: `content`, or another's."""
        for attempt in range(CREATE_ATTEMPTS):
            time.sleep(CREATE_SECONDS if attempt else 0)
            with self._errors(name):
                try:
                    obstore.put(self._objects, name, content, mode="create", use_multipart=False)
                    return content
                except exceptions.AlreadyExistsError:
                    there = self.read(name)
            if there is not None:
                return there
        raise UnavailableError(
            f"{self.uri}/{name} cannot be written: something else writes and removes it. Run again when that has ended."
        )

    def write(self, name: str, content: bytes) -> None:
        """Write a small object."""
        with self._errors(name):
            obstore.put(self._objects, name, content, use_multipart=False)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._errors(name):
            obstore.delete(self._objects, name)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn obstore's errors into ours."""
        try:
            yield
        except (exceptions.BaseError, FileNotFoundError) as error:
            raise self._explained(error, f"{self.uri}/{name}".rstrip("/")) from error

    def _explained(self, error: Exception, where: str) -> StoreError:
        said = str(error).partition("\n\nDebug source")[0]
        code = re.search(r"<Code>(\w+)</Code>(?:<Message>([^<]*))?", said)
        reason = ": ".join(filter(None, code.groups())) if code else " ".join(said.split())[:300]
        kind = _URL.sub("", reason)  # names in a URL are not the server's words
        if "NoSuchBucket" in said:
            return StoreError(
                f"{where} cannot be written: {endpoint_words()} has no bucket {self.bucket!r}. Make it, or check the "
                "name and AWS_ENDPOINT_URL."
            )
        if _NO_CREDENTIALS.search(said):
            return StoreError(
                f"{where} cannot be opened: no credentials were found ({reason}). Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (a profile is not read), or give the machine a role."
            )
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or (
            code and re.search("AccessDenied|InvalidAccessKeyId|Signature|Token", code[1])
        ):
            return StoreError(
                f"{where} refuses the credentials: {reason}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a "
                "profile is not read), or give the machine a role, that may list, read, write and delete there."
            )
        if _REGION.search(kind):
            return StoreError(f"{where} lies in another region: {reason}. Set AWS_REGION to the bucket's.")
        if not code and _UNREACHABLE.search(kind):
            return UnavailableError(
                f"{where} cannot be reached at {endpoint_words()}: {reason}. Check AWS_ENDPOINT_URL, AWS_REGION and "
                "the network, and run again: what was sent is kept."
            )
        return UnavailableError(f"{where} cannot be written: {reason}. Run again: what was sent is kept.")


def _sha256_in(attributes: Mapping[str, str]) -> str | None:
    return next((str(value) for key, value in attributes.items() if str(key).lower() == DIGEST), None)
