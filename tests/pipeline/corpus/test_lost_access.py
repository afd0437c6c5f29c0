"""A disk or a service that fails is no damaged file: reading goes on where it was, or ends in an error naming it."""

from __future__ import annotations

import errno
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.corpus import documents, raw_files, readers
from pipeline.corpus.documents import DamagedFile
from pipeline.corpus.listing import open_corpus
from pipeline.places import retries
from tests.toy_corpora import MANY_RECORDS, PACKED, json_lines, read_all, save_dataset


class Failing:
    """A file system whose file fails at its end, the first `times` times that it is asked for that."""

    def __init__(self, error, times):
        self.error, self.left = error, times

    def open_input_file(self, path):
        stream, outer = fs.LocalFileSystem().open_input_file(path), self

        class File:
            size = staticmethod(stream.size)

            @staticmethod
            def read_at(wanted, at):
                if outer.left and at + wanted > 0.7 * stream.size():
                    outer.left -= 1
                    raise outer.error
                return stream.read_at(wanted, at)

        return File()


ERRORS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError("google::cloud::Status(UNAVAILABLE: the service is down)"),
    OSError("AWS Error SLOW_DOWN during GetObject operation"),
    ConnectionResetError("reset by peer"),
    RuntimeError("whatever a file system raises"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.parquet", "saved", "a.txt"])
def test_lost_access_is_no_content(tmp_path, monkeypatch, name, error):
    """Read on from where it was; and if it stays so, an error that names the file."""
    if name == "saved":
        save_dataset(tmp_path / name, MANY_RECORDS, shards=1, batch=100)
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(MANY_RECORDS), tmp_path / name, row_group_size=100)
    else:
        pack = PACKED.get(os.path.splitext(name)[1], bytes)
        (tmp_path / name).write_bytes(pack(json_lines(MANY_RECORDS)))
    expected = read_all(tmp_path / name)
    monkeypatch.setattr(retries, "FIRST_DELAY", 0)
    monkeypatch.setattr(raw_files, "ASKED_BYTES", 4096)
    corpus = open_corpus(str(tmp_path / name))
    [file] = corpus.files
    for times in (2, 999):
        place = Failing(error, times)
        monkeypatch.setattr(readers, "open_filesystem", lambda uri, place=place: (place, uri))
        if times == 2:
            assert list(readers.read_documents(corpus, file)) == expected and place.left == 0
        else:
            with pytest.raises(ValueError, match=f"cannot read .* after 5 attempts: .*{tmp_path}"):
                list(readers.read_documents(corpus, file))


def test_a_file_that_went_or_shrank_is_a_damaged_file(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(json_lines(MANY_RECORDS))
    corpus = open_corpus(str(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    os.truncate(tmp_path / "b.jsonl", 1000)
    gone, shrunk = (one for file in corpus.files for one in readers.read_documents(corpus, file))
    assert isinstance(gone, DamagedFile) and "No such file" in gone.problem
    assert isinstance(shrunk, DamagedFile) and "it has 1,000 bytes, and had" in shrunk.problem


def test_files_of_the_environment_that_are_for_others_are_counted(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("words")
    monkeypatch.setattr(retries, "FIRST_DELAY", 0)
    refused = Failing(PermissionError(errno.EACCES, "Permission denied"), 99)
    mine = open_corpus(str(tmp_path))
    monkeypatch.setattr(readers, "open_filesystem", lambda uri: (refused, uri))
    with pytest.raises(ValueError, match="cannot read a.txt .*Permission denied"):
        list(readers.read_documents(mine, mine.files[0]))
    [damaged] = readers.read_documents(documents.Corpus(uri="environment", files=mine.files), mine.files[0])
    assert isinstance(damaged, DamagedFile) and "Permission denied" in damaged.problem
