"""An S3 server on loopback (moto): the protocol is real, the account is not."""

from __future__ import annotations

import os

import pytest

BUCKET = "texts"


@pytest.fixture(scope="module")
def server():
    """The URL of an S3 server."""
    from moto.server import ThreadedMotoServer  # slow to import

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """A client of the server, which the environment names too, and an empty bucket ``texts``."""
    import boto3

    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    return client


def upload(client, folder):
    """Every file below `folder`, under its name; in an order that is not the listing's. Returns the URI."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            key = path.relative_to(folder.parent).as_posix()
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return f"s3://{BUCKET}/{folder.name}"
