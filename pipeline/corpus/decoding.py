"""Bytes → text, and what a text or a source's name must not hold: one rule for every format and every command."""

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
"""The byte-order mark as a character. It is not part of the text that follows it."""


class BadText(ValueError):
    """This is not text that can be trained on. `reason` is a few words under which such documents are counted."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason


def encoding_of(head: bytes) -> str:
    """The encoding named by the byte-order mark in the first four bytes; UTF-8 if there is no mark."""
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")


def decode(content: bytes, encoding: str | None = None) -> str:
    """Decode `content` and drop its byte-order mark. Raises :class:`BadText` if it is not in that encoding.

    Args:
        encoding: None takes the encoding that the mark names.
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
    """Raise :class:`BadText` if the text has half a surrogate pair, or zero bytes (a binary file, or UTF-16)."""
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
    """A document's source name in one normal form (NFC); `default` if it is null, empty or blank.

    A whole number becomes its decimal digits. Any other value raises :class:`BadText`, so that two names are never
    silently taken for one, nor one for two.
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
    """`text` made fit for a message: without lone surrogates, and at most `longest` characters long."""
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
