"""Cutting a document into passages, and the hashes passages and documents are known by."""

from __future__ import annotations

from hashlib import blake2b

BREAKS = ("\n\n", "\n", " ")


def cut_passages(text: str, limit: int) -> list[str]:
    """Cut `text` into passages of at most `limit` characters whose concatenation is `text`.

    A cut falls after the last empty line of the second half of what fits, else after its last line break,
    else its last space, else at `limit`. What remains is halved once it fits into two passages, so that no
    document ends in a scrap.
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
    """64 bits that stand for a text; equal on every machine and version.

    Args:
        purpose: of a draw by hash, at most 16 bytes. Hashes of different purposes are independent, so what one draw
            leaves out says nothing of another.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest(), "little")


def _break(text: str, earliest: int, latest: int) -> int:
    for separator in BREAKS:
        at = text.rfind(separator, earliest, latest)
        if at >= 0:
            return at + len(separator)
    return latest
