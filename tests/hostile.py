"""Files that mean harm, or were hit by something: what every reader of ours is fed."""

from __future__ import annotations

import json
import struct

from storage_schema.json_files import JSON_BYTES
from storage_schema.manifest import Manifest, content_digest

JSON = {
    "nothing": b"",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep, and closed": b"[" * 500 + b"]" * 500,
    "a number of 100,000 digits": b'{"step": ' + b"9" * 100_000 + b"}",
    "a number beyond floats": b'{"step": 1e999}',
    "NaN": b'{"step": NaN}',
    "a key twice": b'{"step": 1, "step": 2}',
    "not UTF-8": b'\xff\xfe{"step": 1}',
    "a list": b"[]",
    "cut off": b'{"step": 1, "a',
    "larger than any of ours": b" " * (JSON_BYTES + 1),
}
EXTENSIONS = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_pickled_object",
              "arrow.py_extension_type")  # fmt: skip
"""Of types whose metadata or values some release of Ray or pyarrow unpickles."""
PICKLE = b"\x80\x04\x95(\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\rtouch PICKLED\x94\x85\x94R\x94."
"""Makes a file when it is loaded."""


def forged(manifest: Manifest, **changes) -> str:
    """The manifest with changed content and a matching digest, as anybody who can write the file could make it."""
    body = json.loads(manifest.to_json()) | changes
    names = ("kind", "schema_version", "configuration", "inputs", "counts")
    files = [[f.get("path"), f.get("bytes"), f.get("sha256")] for f in body["files"]]
    body["digest"] = content_digest({name: body[name] for name in names} | {"files": files})
    return json.dumps(body)


def safetensors(header, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    """A file of this header, which may say any `length` of itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, stop: int, shape=(4,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


SAFETENSORS = {
    "nothing": b"",
    "a header of 2^60 bytes": safetensors({"a": _tensor(0, 16)}, length=1 << 60),
    "a header of 100 MB that is not there": safetensors({"a": _tensor(0, 16)}, length=100_000_000),
    "overlapping ranges": safetensors({"a": _tensor(0, 16), "b": _tensor(8, 16, (2,))}),
    "a negative offset": safetensors({"a": _tensor(-16, 0)}),
    "an offset outside the file": safetensors({"a": _tensor(1 << 40, (1 << 40) + 16)}),
    "ranges that leave a gap": safetensors({"a": _tensor(0, 4, (1,)), "b": _tensor(8, 16, (2,))}),
    "a shape that overflows": safetensors({"a": _tensor(0, 16, (1 << 62, 8))}),
    "a shape of another size": safetensors({"a": _tensor(0, 16, (5,))}),
    "a name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    ),
    "an unknown type": safetensors({"a": _tensor(0, 16, dtype="PICKLE")}),
    "a deep header": safetensors(b'{"a":' * 100_000),
    "a pickle": PICKLE,
}
