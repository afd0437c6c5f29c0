"""The doors of a running stack: its HTTP routes and its gRPC methods, and what each says to a stranger."""

from __future__ import annotations

import importlib
import pkgutil
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import grpc
import ray.core.generated

NOT_IN_PYTHON = {"/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull"}
"""Methods of Ray's gRPC services whose descriptions its Python package leaves out."""


class _AsItIs(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_AsItIs, urllib.request.ProxyHandler({}))


def http(url: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b"") -> int:
    """The HTTP status of a request."""
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}), data=body or None)
    try:
        with _OPENER.open(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def routes(log: Path) -> set[tuple[str, str]]:
    """(method, path) of every route that one of Ray's HTTP servers wrote into its log; names filled in with an x."""
    found = re.findall(r"Route \[(\w+)\] <\w+  (/\S*?)(?: ->|>)", log.read_text())
    return {(method, re.sub(r"{\w+}", "x", path)) for method, path in found if method != "OPTIONS"}


def rpcs() -> list[str]:
    """Every method of Ray's gRPC services."""
    found = set(NOT_IN_PYTHON)
    for module in pkgutil.iter_modules(ray.core.generated.__path__, "ray.core.generated."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return sorted(found)


def grpc_answers(port: int, methods: list[str], token: str | None = None) -> dict[str, str] | None:
    """The status of each method when it is asked with an empty request; None if the port does not speak gRPC."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=10)
        except grpc.FutureTimeoutError:
            return None
        asked = {
            name: channel.unary_unary(name).future(b"", metadata=metadata, timeout=30) for name in methods
        }
        return {name: call.code().name for name, call in asked.items()}
