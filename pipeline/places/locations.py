"""Opening the place where a corpus or store lies: a path, ``s3://bucket/prefix``, or another URI of ``pyarrow.fs``.

Credentials, endpoint and region of S3 come from the usual environment variables of the process that reads, or from the
machine's profile or role. They never come from the URI, because dashboards show settings.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from storage_schema.errors import UserError

S3 = "s3://"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
ATTEMPTS = 3
"""Attempts per S3 request. With the two bounds below, a place that does not answer is given up within a minute."""
CONNECT_SECONDS = 5.0
STALLED_SECONDS = 10.0
"""A request has failed if no byte arrives for so long."""
_REFUSED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|[A-Z_]*SIGNATURE[A-Z_]*|[A-Z_]*TOKEN[A-Z_]*"
    r"|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED|REQUEST_TIME_TOO_SKEWED)|HTTP status 40[013]\b"
)
_ELSEWHERE = re.compile(r"HTTP status 30[17]\b|configured region|AuthorizationHeaderMalformed")


@dataclass(frozen=True, kw_only=True)
class S3Place:
    """What an ``s3://`` URI names, and the server on which it lies."""

    bucket: str
    path: str
    """Of the place in its bucket, without slashes at its ends; empty for the whole bucket."""
    scheme: str
    host: str | None
    """None for AWS itself."""
    region: str | None
    """None if nobody knows it: then the machine's profile decides."""


def open_filesystem(uri: str, *, what: str = "The corpus") -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it. Sends no request, except for a bucket's region on AWS.

    Args:
        what: what lies there, in the words of an error.

    Raises:
        ValueError: pyarrow cannot open the URI, an S3 URI names no bucket or holds more than a bucket and a key, or
            the S3 endpoint is not a URL or would send credentials unencrypted.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    if uri.startswith(S3):
        place = s3_place(uri, what=what)
        return _s3(place.scheme, place.host, place.region), f"{place.bucket}/{place.path}".rstrip("/")
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, ImportError) as error:
        raise UserError(f"{what} {uri!r} cannot be opened: {error}") from error


def s3_place(uri: str, *, what: str) -> S3Place:
    """What an ``s3://`` URI names. Sends no request, except for a bucket's region on AWS.

    Raises ValueError as :func:`open_filesystem` does.
    """
    bucket, _, path = uri.removeprefix(S3).rstrip("/").partition("/")
    if "@" in bucket or ":" in bucket:
        raise UserError(
            f"{what}'s S3 URI holds credentials or a host, which would be shown in dashboards. Give "
            "s3://bucket/prefix and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL."
        )
    if not bucket:
        raise UserError(f"{what} {uri!r} names no bucket. Give s3://bucket/prefix.")
    if "?" in path or "?" in bucket:
        raise UserError(
            f"{what} {uri!r} has options. Give s3://bucket/prefix and set AWS_ENDPOINT_URL and AWS_REGION."
        )
    scheme, host = _endpoint()
    return S3Place(bucket=bucket, path=path, scheme=scheme, host=host, region=_region(bucket, host))


def files_below(filesystem: fs.FileSystem, root: str) -> dict[str, fs.FileInfo]:
    """Every file below a folder, by its path relative to the folder.

    On this machine each folder is entered only once, however many links lead to it. So links that form a circle are not
    followed forever.

    Raises OSError if a folder cannot be read, and ValueError if a name is not UTF-8.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        infos = filesystem.get_file_info(_local_files(root))
    else:
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    prefix = root.rstrip("/") + "/"
    return {info.path.removeprefix(prefix): info for info in infos if info.type == fs.FileType.File}


def _local_files(root: str) -> list[str]:
    entered: set[tuple[int, int]] = set()
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in entered:
            folders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        folders.sort()  # else the disk says by which of two links a folder is entered
        found += [os.path.join(folder, name) for name in names]
    for path in found:
        if not path.isprintable() and re.search("[\ud800-\udfff]", path):
            raise UserError(f"The name of the file {path!r} is not UTF-8. Rename it.")
    return found


def missing(uri: str, filesystem: fs.FileSystem, path: str) -> UserError:
    """The error for a corpus that does not exist. Raises OSError if its bucket cannot be looked up."""
    bucket = path.partition("/")[0]
    if uri.startswith(S3) and filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
        return UserError(
            f"The corpus {uri!r} does not exist: {endpoint_words()} has no bucket {bucket!r}. Check its name "
            "and AWS_ENDPOINT_URL."
        )
    return UserError(
        f"The corpus {uri!r} does not exist. Give the path of a file or folder, or `environment`."
    )


def explain(uri: str, error: Exception, *, what: str = "The corpus") -> UserError:
    """Turn a file system's error at `uri` into an error for the user, with the way out."""
    reason = " ".join(str(error).split()).rstrip(".")
    if not uri.startswith(S3):
        return UserError(f"{what} {uri!r} cannot be read: {reason}. Mend that and run again.")
    if _ELSEWHERE.search(reason):
        return UserError(
            f"{what} {uri!r} lies in another region: {reason}. Set AWS_REGION to the bucket's, on every "
            "node of the Ray cluster."
        )
    if _REFUSED.search(reason):
        return UserError(
            f"{what} {uri!r} refuses the credentials: {reason}. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the machine a role, that may list and read it, on every node of "
            "the Ray cluster."
        )
    if "NETWORK_CONNECTION" in reason:
        return UserError(
            f"{what} {uri!r} cannot be reached at {endpoint_words()}: {reason}. Check AWS_ENDPOINT_URL, "
            "AWS_REGION and the network, on every node of the Ray cluster, and run again."
        )
    return UserError(f"{what} {uri!r} cannot be read: {reason}. Mend that and run again.")


def _endpoint() -> tuple[str, str | None]:
    """``("http", "127.0.0.1:9000")``; the host is None for AWS itself."""
    for variable in ENDPOINT_VARIABLES:
        url = os.environ.get(variable)
        if not url:
            continue
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise UserError(f"{variable} is not a URL of a server. Give one such as https://s3.example.org.")
        if parts.path.strip("/") or parts.query:
            raise UserError(f"{variable} is {url!r}: an endpoint has no path. Give scheme, host and port.")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise UserError(
                f"{variable} is {url!r}: plain http is only for this machine (127.0.0.1). Use https."
            )
        return parts.scheme, parts.netloc
    return "https", None


def endpoint_words() -> str:
    """The S3 server, for an error."""
    scheme, host = _endpoint()
    return f"{scheme}://{host}" if host else "AWS"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _region(bucket: str, host: str | None) -> str | None:
    for variable in REGION_VARIABLES:
        if os.environ.get(variable):
            return os.environ[variable]
    return "us-east-1" if host else _bucket_region(bucket)


@functools.lru_cache(maxsize=16)
def _bucket_region(bucket: str) -> str | None:
    """A bucket's region on AWS. None if it cannot be found: then the machine's profile decides."""
    try:
        return fs.resolve_s3_region(bucket)
    except (OSError, pa.ArrowInvalid):
        return None


@functools.lru_cache(maxsize=16)
def _s3(scheme: str, host: str | None, region: str | None) -> fs.S3FileSystem:
    """The S3 client, one for all files: making a client costs more than reading a small file."""
    return fs.S3FileSystem(
        scheme=scheme,
        endpoint_override=host,
        region=region,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=STALLED_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
