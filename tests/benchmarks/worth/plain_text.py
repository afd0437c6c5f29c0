"""Plain text of HTML pages, JSON and other markup that packages hold."""

from __future__ import annotations

import gzip
import re
from html.parser import HTMLParser
from pathlib import Path

UNSEEN = {"script", "style", "head", "nav", "noscript", "footer"}
"""Elements whose text no reader of the page sees, or that stand on every page."""
BLOCKS = {
    "p", "div", "li", "tr", "br", "pre", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "section",
}  # fmt: skip


class _Text(HTMLParser):
    """The text that a reader of the page sees, without navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = ""
        """The tag of the outermost element that hides its text; empty: none does."""
        self._depth = 0
        """Elements of that tag that are open in each other."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self.pieces.append("\n")
        names = dict(attributes)
        aside = names.get("role") == "navigation" or "sidebar" in (names.get("class") or "")
        if not self._hidden and (tag in UNSEEN or aside):
            self._hidden = tag
        self._depth += tag == self._hidden

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self.pieces.append("\n")
        self._depth -= tag == self._hidden
        if not self._depth:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)


def of_html(page: str) -> str:
    """The page's text: blocks on lines of their own, without navigation."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    text = re.sub(r"[ \t\xa0]+", " ", "".join(parser.pieces))
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).replace("¶", "").strip()


def read(path: Path) -> str:
    """A file as UTF-8 text, unpacked if it ends in .gz or .dz; bytes that are none become U+FFFD."""
    body = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        body = gzip.decompress(body)
    return body.decode("utf-8", "replace")
