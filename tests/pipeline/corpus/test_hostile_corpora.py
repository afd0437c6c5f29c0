"""Corpora, tables of mixtures, tokenizers and stores elsewhere that mean harm: named errors within bounds."""

import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import fs

from pipeline.corpus import readers
from pipeline.corpus.documents import BadDocument
from pipeline.corpus.listing import open_corpus
from pipeline.embeddings.build import read_embeddings, write_embeddings
from pipeline.mixtures.ratios import read_table
from pipeline.remote.mirror import mirror_store
from pipeline.specialists.held_out import _folder_name
from pipeline.specialists.sets import set_of_texts
from pipeline.tokenizer import load_tokenizer
from storage_schema.manifest import StoreError, read_manifest
from tests.hostile import EXTENSIONS, JSON, PICKLE, forged
from tests.toy_corpora import read_all, save_dataset
from tests.toy_store import make_store


@pytest.fixture(autouse=True)
def nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "PICKLED").exists()


@pytest.mark.parametrize("name", JSON)
def test_a_line_or_a_file_of_harmful_json(tmp_path, name):
    (tmp_path / "l.jsonl").write_bytes(b'{"text": "before"}\n' + JSON[name] + b'\n{"text": "after"}\n')
    found = read_all(tmp_path / "l.jsonl")
    assert [one.text for one in found if not isinstance(one, BadDocument)] == ["before", "after"]
    assert all(one.where == "l.jsonl:2" for one in found if isinstance(one, BadDocument))
    save_dataset(tmp_path / "saved")
    for of_dataset in ("state.json", "dataset_dict.json"):
        (tmp_path / "saved" / of_dataset).write_bytes(JSON[name])
        with pytest.raises(ValueError, match=f"saved/{of_dataset} "):
            open_corpus(str(tmp_path / "saved"))
        (tmp_path / "saved" / of_dataset).unlink()
        save_dataset(tmp_path / "saved")


def test_a_tokenizer_of_harmful_json(tmp_path):
    for name, content in JSON.items():
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(StoreError, match="tokenizer.json"):
            load_tokenizer(tmp_path)
        assert name
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(StoreError, match="tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_a_gigabyte_in_a_few_kilobytes(tmp_path, monkeypatch, suffix, kind):
    """The bounds are lowered a hundredfold, and the bomb with them; how much is asked of the file is counted."""
    monkeypatch.setattr(readers, "LINE_BYTES", 640 << 10)
    monkeypatch.setattr(readers, "TEXT_BYTES", 640 << 10)
    path, block = tmp_path / f"bomb.{kind}{suffix}", b"x" * (1 << 20)
    opened = gzip.open(path, "wb", 1) if suffix == ".gz" else zstandard.open(path, "wb")
    with opened as file:
        file.write(b'{"text": "before"}\n')
        for _ in range(10):
            file.write(block)
        file.write(b'\n{"text": "after"}\n')
    assert path.stat().st_size < 100_000
    *before, bad = read_all(path) if kind == "txt" else read_all(path)[:2]
    assert isinstance(bad, BadDocument) and "more than 655,360 bytes. Cut it" in bad.problem
    if kind == "jsonl":
        assert [one.text for one in before] == ["before"] and read_all(path)[2].text == "after"
        monkeypatch.setattr(readers, "SKIPPED_BYTES", 2 << 20)
        assert len(read_all(path)) == 2


def test_no_more_is_held_of_a_line_than_its_bound(monkeypatch):
    monkeypatch.setattr(readers, "LINE_BYTES", 1000)
    asked = []

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            asked.append(len(buffer))
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    monkeypatch.setattr(readers, "SKIPPED_BYTES", 10 << 20)
    with pytest.raises(readers.OtherShape, match="a line of it has more than"):
        list(readers._lines(io.BufferedReader(Endless(), readers.BUFFER_BYTES)))
    assert max(asked) <= readers.BUFFER_BYTES and sum(asked) < 11 << 20


def _stream(path, table):
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_of_an_extension_type(tmp_path, kind, name, registered):
    if registered:
        import ray.data.extensions  # noqa: F401  (registers Ray's types)
    metadata = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": PICKLE}
    python = pa.array([PICKLE], pa.large_binary())
    inner = pa.StructArray.from_arrays([python], fields=[pa.field("x", python.type, metadata=metadata)])
    for storage in (python, inner, pa.array([[1, 2]], pa.list_(pa.int64(), 2)), pa.array(["words"])):
        outer = None if storage is inner else metadata
        table = pa.table([storage], schema=pa.schema([pa.field("text", storage.type, metadata=outer)]))
        if kind == "parquet":
            pq.write_table(table, tmp_path / "t.parquet")
            found = read_all(tmp_path / "t.parquet")
        else:
            save_dataset(tmp_path / "saved", shards=1)
            _stream(tmp_path / "saved" / "data-00000-of-00001.arrow", table)
            found = read_all(tmp_path / "saved")
        assert len(found) == 1 and (isinstance(found[0], BadDocument) or found[0].text == "words")


@pytest.mark.parametrize(
    "table",
    [
        pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        pa.table({"text": pa.array([1 << 62], pa.timestamp("s"))}),
        pa.table({"text": pa.array([0], pa.timestamp("s", "../../etc/passwd"))}),
        pa.table({"text": pa.array([1 << 62], pa.duration("s"))}),
        pa.table({"text": ["a"], "source": pa.array([1 << 62], pa.timestamp("s"))}),
        pa.table({"text": pa.array([b"\xff"]).view(pa.string())}),
    ],
    ids=str,
)
def test_columns_that_have_no_python_value(tmp_path, table):
    save_dataset(tmp_path / "saved", shards=1)
    _stream(tmp_path / "saved" / "data-00000-of-00001.arrow", table)
    [bad] = read_all(tmp_path / "saved")
    assert isinstance(bad, BadDocument) and bad.where.startswith("data-00000-of-00001.arrow")


def test_strings_that_claim_more_than_their_buffer(tmp_path):
    """Before, pyarrow read what lies behind the batch, or the process died."""
    save_dataset(tmp_path, [{"text": "x" * 1001}], shards=1)
    path = tmp_path / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    offset = (1001).to_bytes(4, "little")
    path.write_bytes(content.replace(b"\0\0\0\0" + offset, b"\0\0\0\0" + (1 << 24).to_bytes(4, "little")))
    assert path.read_bytes() != content
    [bad] = read_all(tmp_path)
    assert isinstance(bad, BadDocument) and "1000" not in bad.where


def test_links_in_circles_and_names_that_lead_out(tmp_path):
    folder = tmp_path / "c"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.txt").write_text("words")
    for number in range(4):  # followed without end, they would be 4^40 folders
        (folder / "a" / f"loop{number}").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    assert [file.name for file in open_corpus(str(folder)).files] == ["a/x.txt"]
    (tmp_path / "secret.arrow").write_bytes(b"secret")
    for name in ("../secret.arrow", str(tmp_path / "secret.arrow")):
        save_dataset(tmp_path / "saved", _data_files=[{"filename": name}])
        with pytest.raises(ValueError, match="names the file .*secret.arrow.* which is not there"):
            open_corpus(str(tmp_path / "saved"))


def test_a_source_names_a_folder_below_whatever_it_is():
    assert [_folder_name(name) for name in ("pip", "c++")] == ["pip", "c-" + _folder_name("c++")[2:]]
    names = ("../../etc/x", "/etc/cron.d/x", "..", ".", "", "a/b", "a b", "x" * 400, "\0", "-rf", "é")
    made = {_folder_name(name) for name in names}
    assert len(made) == len(names)
    assert all("/" not in name and not name.startswith(".") and len(name) < 201 for name in made)
    with pytest.raises(ValueError, match="cannot name a specialist"):
        set_of_texts("../x", "nowhere", max_texts=1, evaluation_passages=0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\0",
        b"run,domain_99999999999999999999\n0,1\n",
        b"run,domain_3000000000\n0,1\n",
        b"run,domain_1,domain_0001\n0,.5,.5\n",
        b"run,domain_0001,domain_0001\n0,.5,.5\n",
        b"run,domain_0001\n0\n0,1,2,3\n",
        b'run,domain_0001\n"0,1\n',
        gzip.compress(b"run,domain_0001\n0,1\n" + b"0,1\n" * 100_000, mtime=0),
        zstandard.compress(b"run,domain_0001\n0,1\n"),
        PICKLE,
    ],
)
def test_a_table_of_mixtures_that_is_none(tmp_path, content):
    (tmp_path / "ratios.csv").write_bytes(content)
    with pytest.raises(ValueError, match="ratios.csv"):
        read_table(tmp_path / "ratios.csv")


def test_a_table_of_mixtures_is_a_file_and_no_pattern_or_address(tmp_path):
    (tmp_path / "ratios.csv").write_text("run,domain_0001\n0,1\n")
    assert read_table(tmp_path / "ratios.csv")[0] == ["0"]
    for name in ("rat*.csv", "http://127.0.0.1:9/ratios.csv"):
        with pytest.raises(ValueError, match="is no table of mixtures: .*No such file"):
            read_table(name)


def test_a_store_elsewhere_that_names_files_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "home"))
    store = make_store(tmp_path / "store", [40])
    manifest = read_manifest(store / "tokenizer", "tokenizer")
    (tmp_path / "evil").write_bytes(b"evil")
    entry = json.loads(manifest.to_json())["files"][0] | {"path": "../../../../evil"}
    (store / "tokenizer/manifest.json").write_text(forged(manifest, files=[entry]))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="not the path of a file in the folder"):
        mirror_store("file:///store", fs.LocalFileSystem(), str(store))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "home"])
    (store / "domains/manifest.json").write_bytes(JSON["larger than any of ours"])
    with pytest.raises(StoreError, match="domains/manifest.json has 33,554,433 bytes; at most 33,554,432"):
        mirror_store("file:///store", fs.LocalFileSystem(), str(store))


def test_embeddings_that_are_none(tmp_path):
    import numpy as np

    write_embeddings(str(tmp_path / "e.arrow"), np.arange(2), np.eye(2))
    assert read_embeddings(tmp_path / "e.arrow")[1].shape == (2, 2)
    for table in (pa.table({"x": [1]}), pa.table({"passage_id": [1], "embedding": [[1.0]]})):
        with pa.ipc.new_file(str(tmp_path / "f.arrow"), table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(StoreError, match="f.arrow is not embeddings: its columns are"):
            read_embeddings(tmp_path / "f.arrow")
