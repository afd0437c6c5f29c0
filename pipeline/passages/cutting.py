"""Cutting a document into passages, and the hashes that identify passages and documents."""

from __future__ import annotations

from hashlib import blake2b

BREAKS = ("\n\n", "\n", " ")


def cut_passages(text: str, limit: int) -> list[str]:
    """Cut `text` into passages of at most `limit` characters. Joined, they give `text` again.

    A cut is made in the second half of what fits into a passage: after its last empty line, else after its last line
    break, else after its last space, else at the end. A rest that fits into two passages is halved, so that no document
    ends in a very short passage.
    """
    passages = []
    start = 0
    while len(text) - start > limit:
        room = min(limit, -(-(len(text) - start) // 2))
        end = _break(text, start + room // 2, start + room)
        passages.append(text[start:end])
        start = end
    return [*passages, text[start:]] if start < len(text) else passages


def text_hash(text: str, *, purpose: str = "") -> int:
    """A hash of 64 bits that identifies a text, the same on every machine and in every version.

    Args:
        purpose: what is drawn by this hash, in at most 16 bytes. Hashes of different purposes are independent, so one
            draw does not influence another.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest(), "little")


def _break(text: str, earliest: int, latest: int) -> int:
    for separator in BREAKS:
        at = text.rfind(separator, earliest, latest)
        if at >= 0:
            return at + len(separator)
    return latest
