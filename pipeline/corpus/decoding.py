"""Bytes → text, and what neither a text nor a source's name may hold: one rule for every format and every door."""

from __future__ import annotations

import codecs
import unicodedata

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
MARK = "\ufeff"
"""The byte-order mark as a character: no part of the text that it begins."""


class BadText(ValueError):
    """Not text that can be trained on; `reason`, a few words, is what such documents are counted under."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason


def encoding_of(head: bytes) -> str:
    """The encoding that the byte-order mark in the first four bytes names; UTF-8 without one."""
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")


def decode(content: bytes, encoding: str | None = None) -> str:
    """The text in `content`, without its byte-order mark. Raises :class:`BadText`.

    Args:
        encoding: none: what the mark names.
    """
    encoding = encoding or encoding_of(content[:4])
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise BadText(
            f"not {name}", f"not {name}: byte {error.object[error.start]:#04x} at {error.start}"
        ) from error


def check_text(text: str) -> None:
    """Raise :class:`BadText` for half a surrogate pair, or for the zero bytes of binary files and of UTF-16."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadText("a lone surrogate", f"not Unicode text: lone surrogate at {error.start}") from error
    if "\0" in text:
        raise BadText(
            "zero bytes",
            "holds zero bytes: it is binary, or UTF-16 without a byte-order mark. Save it as UTF-8, or remove it.",
        )


def source_name(found: object, default: str) -> str:
    """A source's name as a document gives it, in one normal form (NFC); `default` for null, empty or blank.

    A whole number is its decimal digits. Raises :class:`BadText` for any other value, so that no two names are taken
    for one, or one for two, without a word.
    """
    if found is None:
        return default
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str):
        raise BadText(
            "no name as source", f"a {type(found).__name__}; a source is a string or a whole number"
        )
    check_text(found)
    return unicodedata.normalize("NFC", found) if found.strip() else default


def printable(text: str, longest: int = 1000) -> str:
    """`text` as a message can hold it: no lone surrogates, and of a bounded length."""
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
