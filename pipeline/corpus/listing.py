"""Listing a corpus: the installed environment, JSON lines, Parquet, text, or a folder of such files.

Listing (:func:`open_corpus`) is cheap and names every file. The files are then read one by one (``readers.py``), so
that they can be read in parallel and one broken file does not affect the others. A corpus may lie anywhere
(``pipeline/places/locations.py``): the documents are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from pipeline.corpus.decoding import source_name
from pipeline.corpus.documents import (
    COMPRESSIONS,
    ENVIRONMENT,
    Corpus,
    CorpusFile,
    split_suffix,
)
from pipeline.corpus.environment import list_environment
from pipeline.corpus.saved_datasets import DATA_SUFFIX, METADATA, keep_data
from pipeline.places.locations import explain, files_below, missing, open_filesystem
from storage_schema.errors import UserError

LINE_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TEXT_SUFFIXES = {".txt", ".text", ".md", ".rst", ".py", ".pyi", ".tex", ".html", ".xml", ".csv", ".org"}


def open_corpus(uri: str, *, text_field: str = "text", source_field: str = "source") -> Corpus:
    """List the files of a corpus, in a deterministic order.

    Args:
        uri: ``environment``, or a local path or ``pyarrow.fs`` URI of a file or folder. For a dataset saved with
            ``save_to_disk``, its folder.
        text_field: the field of JSON lines, Parquet and saved datasets that holds the text.
        source_field: the field that names a document's source; documents may lack it.

    Raises:
        ValueError: nothing is there, it cannot be reached, refuses the credentials, or holds no file of a
            known kind or a saved dataset that cannot be read.
    """
    if not uri.strip():
        raise UserError(
            "The path of the corpus is empty. Give that of a file or folder, a URI, or `environment`."
        )
    not_read: Counter[str] = Counter()
    if uri == ENVIRONMENT:
        listed: Sequence[CorpusFile] = list_environment()
    else:
        listed, not_read = _list(uri)
    files = tuple(file for file in listed if file.bytes > 0)
    if empty := len(listed) - len(files):
        not_read["empty"] = empty
    if not files:
        known = " ".join(sorted({*LINE_SUFFIXES, ".parquet", *TEXT_SUFFIXES}))
        there = f" There are other files: {files_not_read(not_read)}." if not_read else ""
        raise UserError(
            f"The corpus {uri!r} is empty: it has no file with anything in it of the kinds {known} "
            f"({', '.join(COMPRESSIONS)} too), nor a dataset saved with save_to_disk.{there} Give the path of a file "
            "or folder that has, or `environment`."
        )
    return Corpus(
        uri=uri, files=files, text_field=text_field, source_field=source_field, not_read=dict(not_read)
    )


def files_not_read(not_read: Mapping[str, int]) -> str:
    """Such as ``3 .tsv, 1 empty``, the largest number first."""
    return ", ".join(f"{number:,} {kind}" for kind, number in Counter(not_read).most_common())


def _list(uri: str) -> tuple[list[CorpusFile], Counter[str]]:
    """The files of the corpus, and counts of the files that are not read, by kind."""
    filesystem, root = open_filesystem(uri)
    folder = PurePosixPath(root).name
    try:
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.NotFound:
            raise missing(uri, filesystem, root)
        if info.type == fs.FileType.File:
            return [_single_file(uri, info)], Counter()
        named = files_below(filesystem, root)
        hidden = {name: mark for name in named if (mark := _hidden(name))}
        kept = keep_data(filesystem, {name: info for name, info in named.items() if name not in hidden})
    except (OSError, pa.ArrowInvalid) as error:
        raise explain(uri, error) from error
    found = [_corpus_file(info, name, any_suffix=False, folder=folder) for name, info in sorted(kept.items())]
    files = [file for file in found if file is not None]
    others = named.keys() - {file.name for file in files} - _metadata(named, kept)
    kinds = (
        hidden.get(name) or PurePosixPath(name).suffix.lower() or "without an ending"
        for name in sorted(others)
    )
    return files, Counter(kinds)


def _hidden(name: str) -> str | None:
    """How the name of a hidden file begins: it, or a folder above it, begins with a dot or an underscore. Else None."""
    marks = [part[0] for part in PurePosixPath(name).parts if part[0] in "._"]
    return f"named {marks[0]}*" if marks else None


def _metadata(named: dict[str, fs.FileInfo], kept: dict[str, fs.FileInfo]) -> set[str]:
    """The metadata files of saved datasets; they were read while listing."""
    return {name for name in named if PurePosixPath(name).name in METADATA and name not in kept}


def _single_file(uri: str, info: fs.FileInfo) -> CorpusFile:
    path = PurePosixPath(info.path)
    if path.suffix.lower() == DATA_SUFFIX:
        raise UserError(f"The corpus {uri!r} is one file of a saved dataset. Give the dataset's folder.")
    file = _corpus_file(info, path.name, any_suffix=True, folder=path.stem)
    assert file is not None  # any suffix will do
    return file


def _corpus_file(info: fs.FileInfo, name: str, *, any_suffix: bool, folder: str) -> CorpusFile | None:
    plain, compression = split_suffix(name)
    path = PurePosixPath(plain)
    suffix = path.suffix.lower()
    if suffix in LINE_SUFFIXES:
        kind, default_source = "lines", path.stem
    elif suffix == ".parquet":
        kind, default_source = "parquet", path.stem
    elif suffix == DATA_SUFFIX:
        kind, default_source = "arrow", folder
    elif suffix in TEXT_SUFFIXES or any_suffix:
        kind, default_source = "text", folder
    else:
        return None
    return CorpusFile(
        path=info.path,
        name=name,
        source=source_name(path.parts[0] if len(path.parts) > 1 else default_source, folder),
        format=kind,
        compression=compression,
        bytes=info.size,
        modified=info.mtime_ns or 0,
    )
