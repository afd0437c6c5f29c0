"""Another machine on this machine's network: a network namespace, joined by a pair of virtual interfaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ASK = """
import errno, json, socket, sys

found = {}
for address, port in json.load(sys.stdin):
    try:
        socket.create_connection((address, port), timeout=3).close()
        found[f"{address} {port}"] = "open"
    except OSError as error:
        found[f"{address} {port}"] = errno.errorcode.get(error.errno, str(error))
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Elsewhere:
    """The other machine."""

    namespace: str
    addresses: list[str]
    """Of this machine, as the other one knows it."""

    def connect(self, ports: set[int]) -> dict[str, str]:
        """What becomes of a connection from there to each port of each address: ``open``, or the error's name."""
        asked = [(address, port) for address in self.addresses for port in sorted(ports)]
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", _ASK]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Make it, and take it down whatever happens. Needs root and iproute2."""
    number = os.getpid() % 16_000
    name, near, far = f"soe-test-{number}", f"soe{number}a", f"soe{number}b"
    pairs = [
        (f"198.18.{number // 64}.{number % 64 * 4 + 1}", f"198.18.{number // 64}.{number % 64 * 4 + 2}", 30)
    ]
    if Path("/proc/net/if_inet6").exists():
        pairs.append((f"fd5e:50e:{number:x}::1", f"fd5e:50e:{number:x}::2", 64))
    _ip("netns", "add", name)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        for ours, theirs, bits in pairs:
            nodad = ["nodad"] if ":" in ours else []
            _ip("address", "add", f"{ours}/{bits}", "dev", near, *nodad)
            _ip("-n", name, "address", "add", f"{theirs}/{bits}", "dev", far, *nodad)
        _ip("link", "set", near, "up")
        for interface in (far, "lo"):
            _ip("-n", name, "link", "set", interface, "up")
        yield Elsewhere(name, [ours for ours, _, _ in pairs])
    finally:
        subprocess.run(["ip", "link", "delete", near], capture_output=True)
        _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
