"""Changed copies of valid files, drawn by hypothesis: edited bytes, and JSON with one value changed.

``SOE_FUZZ=100`` draws a hundred times as many.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SCALE = int(os.environ.get("SOE_FUZZ", "1"))


def bounded(examples: int):
    """So many examples, always the same ones."""
    return settings(
        derandomize=SCALE == 1,
        deadline=None,
        database=None,
        max_examples=examples * SCALE,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "zero"]), st.floats(0, 1), st.binary(max_size=8)
    ),
    min_size=1,
    max_size=4,
)
head = st.booleans()
"""Whether the edits are in a file's first bytes, where its header lies."""


def edited(content: bytes, changes, in_head: bool = False) -> bytes:
    data = bytearray(content)
    for kind, where, extra in changes:
        at = int(where * (min(len(data), 300) if in_head else len(data)))
        if kind == "cut":
            del data[at : at + 1 + 13 * len(extra)]
        elif kind == "insert":
            data[at:at] = extra
        elif kind == "repeat":
            data[at:at] = data[at : at + 40]
        elif data:
            at = min(at, len(data) - 1)
            data[at : at + max(1, len(extra))] = (
                extra or b"\0" if kind == "flip" else bytes(max(1, len(extra)))
            )
    return bytes(data)


@st.composite
def changed_json(draw, value):
    """The JSON value with one value in it, at any depth, replaced, taken out, or given another name."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        copy = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        key = draw(st.sampled_from(sorted(copy, key=str)))
        how = draw(st.integers(0, 5))
        if how == 0:
            del copy[key]
        elif how == 1 and isinstance(value, dict):
            copy[draw(st.text(max_size=5))] = copy.pop(key)
        else:
            copy[key] = draw(changed_json(copy[key]))
        return copy if isinstance(value, dict) else list(copy.values())
    return draw(json_values)
