"""Text that a reader could lose without a word: what is wrong is named, and counted as what it is."""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import raw_files
from pipeline.corpus.decoding import source_name
from pipeline.corpus.documents import BadDocument, DamagedFile, Document
from pipeline.corpus.listing import open_corpus
from tests.toy_corpora import MANY_RECORDS, PACKED, json_lines, read_all, save_dataset

INVALID = pa.array([b"\xff"]).view(pa.string())


def kinds(found):
    return {kind: sum(type(one) is kind for one in found) for kind in {type(one) for one in found}}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "dictionary"])
def test_one_bad_row_loses_itself_alone(tmp_path, kind):
    texts = pa.concat_arrays([pa.array([f"t{i}" for i in range(2000)]), INVALID, pa.array(["last"])])
    sources = pa.concat_arrays([pa.array(["s"] * 1000), INVALID, pa.array(["s"] * 1001)])
    if kind == "dictionary":
        words = pa.concat_arrays([pa.array(["s"]), INVALID])
        sources = pa.DictionaryArray.from_arrays(pa.array([0] * 1000 + [1] + [0] * 1001), words)
    table = pa.table({"text": texts, "source": sources})
    if kind != "parquet":
        save_dataset(tmp_path, shards=1)
        with pa.ipc.new_stream(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
    else:
        pq.write_table(table, tmp_path / "t.parquet")
    found = read_all(tmp_path)
    assert kinds(found) == {Document: 2000, BadDocument: 2}
    bad = [(one.where.rpartition(":")[2], one.problem) for one in found if isinstance(one, BadDocument)]
    assert [row for row, _ in bad] == ["1000", "2000"]
    assert "'source'" in bad[0][1] and "'text'" in bad[1][1] and "UTF8" in bad[1][1]
    assert found[-1].text == "last"


def test_a_broken_row_group_loses_its_own_rows_and_says_how_many(tmp_path):
    pq.write_table(
        pa.Table.from_pylist(MANY_RECORDS), tmp_path / "t.parquet", row_group_size=500, compression="zstd"
    )
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    start = pq.read_metadata(tmp_path / "t.parquet").row_group(2).column(0).data_page_offset
    content[start : start + 200] = bytes(200)
    (tmp_path / "t.parquet").write_bytes(content)
    found = read_all(tmp_path)
    assert kinds(found) == {Document: 2000, DamagedFile: 1}
    [damaged] = [one for one in found if isinstance(one, DamagedFile)]
    assert damaged.where == "t.parquet:1000" and damaged.lost == 500
    assert "row group 2" in damaged.problem and "1,000 documents of it were read before" in damaged.problem
    assert found[-1].document_id == "t.parquet:2499"


@pytest.mark.parametrize("suffix", PACKED)
def test_a_file_cut_in_its_middle_is_a_damaged_file_and_no_bad_document(tmp_path, suffix):
    """bzip2 and Zstandard pack a stream of this size as one block: of several, the last is cut."""
    streams = [PACKED[suffix](json_lines(MANY_RECORDS[part::5])) for part in range(5)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(streams))
    assert kinds(read_all(path)) == {Document: 2500}
    path.write_bytes(b"".join(streams)[: sum(map(len, streams[:3])) - 9])
    *documents, damaged = read_all(path)
    assert 1000 <= len(documents) <= 1500 and kinds(documents) == {Document: len(documents)}
    assert isinstance(damaged, DamagedFile) and damaged.reason == "ends early"
    assert damaged.where == f"a.jsonl{suffix}:{len(documents) + 1}"
    assert f"{len(documents):,} documents of it were read before" in damaged.problem
    (tmp_path / f"b.txt{suffix}").write_bytes(PACKED[suffix](b"words " * 999)[:-9])
    assert isinstance(read_all(tmp_path / f"b.txt{suffix}")[0], DamagedFile)


def test_an_unpacked_stream_is_read_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "XZ_BYTES", 1 << 20)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"x" * 9, preset=9))  # asks for 64 MiB
    [damaged] = read_all(tmp_path)
    assert isinstance(damaged, DamagedFile) and "Memory usage limit" in damaged.problem
    monkeypatch.setattr(raw_files, "XZ_BYTES", 256 << 20)
    padded = (
        lzma.compress(json_lines(MANY_RECORDS))
        + bytes(8)
        + lzma.compress(json_lines(MANY_RECORDS[:9]))
        + bytes(4)
    )
    (tmp_path / "a.txt.xz").rename(tmp_path / "a.jsonl.xz")
    (tmp_path / "a.jsonl.xz").write_bytes(padded)
    assert kinds(read_all(tmp_path)) == {Document: 2509}


@pytest.mark.parametrize("where", ["in a batch", "between batches", "the end's mark"])
def test_an_arrow_shard_that_ends_early(tmp_path, where):
    """Cut between two batches it would look whole, but for the mark of its end."""
    save_dataset(tmp_path, MANY_RECORDS, shards=1, batch=500)
    path = tmp_path / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    with pa.ipc.open_stream(pa.BufferReader(content[:-8])) as stream:
        assert sum(batch.num_rows for batch in stream) == 2500
    if where == "in a batch":
        content = content[: len(content) // 2]
    elif where == "between batches":
        source = pa.BufferReader(content)
        stream = pa.ipc.open_stream(source)
        for _ in range(3):
            stream.read_next_batch()
        content = content[: source.tell()]
    else:
        content = content[:-8]
    path.write_bytes(content)
    *documents, damaged = read_all(tmp_path)
    assert isinstance(damaged, DamagedFile) and damaged.reason == "ends early"
    expected = {"in a batch": 1000, "between batches": 1500, "the end's mark": 2500}[where]
    assert len(documents) == expected and damaged.where == f"{path.name}:{expected}"


def test_files_of_another_shape_are_damaged_files(tmp_path):
    """One each, however many documents they would have held."""
    (tmp_path / "array.json").write_text(json.dumps(MANY_RECORDS))
    (tmp_path / "pretty.json").write_text("\n" + json.dumps(MANY_RECORDS, indent=1))
    (tmp_path / "object.json").write_text(json.dumps({"name": "a", "version": 1}, indent=1))
    (tmp_path / "mark.json").write_bytes(codecs.BOM_UTF8 + json.dumps(MANY_RECORDS).encode())
    pq.write_table(pa.table({"body": ["a"] * 99}), tmp_path / "column.parquet")
    pq.write_table(pa.table({"text": [1.5] * 99}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"text": ["a"] * 9, "source": [1.5] * 9}), tmp_path / "source.parquet")
    (tmp_path / "packed.parquet.gz").write_bytes(gzip.compress((tmp_path / "numbers.parquet").read_bytes()))
    (tmp_path / "unmarked.jsonl").write_bytes(json_lines(MANY_RECORDS).decode().encode("utf-16-le"))
    found = {one.where: one for one in read_all(tmp_path)}
    assert len(found) == 9 and {type(one) for one in found.values()} == {DamagedFile}
    assert all("jq -c" in found[f"{name}.json"].problem for name in ("array", "pretty", "object", "mark"))
    assert "no column 'text'; it has body" in found["column.parquet"].problem
    assert "the column 'text' has the type double; save it as strings" in found["numbers.parquet"].problem
    assert "the column 'source' has the type double" in found["source.parquet"].problem
    assert "is Parquet inside gzip, which is not unpacked: unpack it" in found["packed.parquet.gz"].problem
    assert "UTF-16 or UTF-32 without a byte-order mark. Save it as UTF-8" in found["unmarked.jsonl"].problem


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_is_read_and_dropped(tmp_path, encoding):
    marked = lambda text: text.encode(encoding) if "be" not in encoding else f"\ufeff{text}".encode(encoding)  # noqa: E731
    lines = json_lines(MANY_RECORDS).decode() + '{"text": "é 漢字 𝄞\\nx"}\n'
    (tmp_path / "a.jsonl").write_bytes(marked(lines))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(marked("é 漢字 𝄞\nx")))
    found = read_all(tmp_path)
    assert kinds(found) == {Document: 2502}
    assert found[-1].text == found[-2].text == "é 漢字 𝄞\nx" and found[0].text == "text 0"


def test_a_mark_inside_a_record_or_between_files_put_together(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(2 * (codecs.BOM_UTF8 + b'{"text": "\xef\xbb\xbfa"}\n'))
    assert [one.text for one in read_all(tmp_path)] == ["a", "a"]


def test_what_is_no_text_is_refused_in_every_format(tmp_path):
    texts = ["a\0b", "good"]
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": text} for text in texts]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "b.parquet")
    save_dataset(tmp_path / "c", [{"text": text} for text in texts], shards=1)
    (tmp_path / "d.txt").write_text(texts[0])
    (tmp_path / "e.txt").write_bytes("words".encode("utf-16-be"))
    found = read_all(tmp_path)
    assert kinds(found) == {Document: 3, BadDocument: 5}
    assert {one.reason for one in found if isinstance(one, BadDocument)} == {"zero bytes"}


def test_other_fields_are_checked_too(tmp_path):
    odd = ["\ud800", 1.0, True, {"a": 1}, ["x"], "a\0"]
    none = [None, "", " \n"]
    named = {1: "1", "1": "1", "u\u0308": "ü", "ü": "ü", " a": " a"}
    lines = json_lines([{"text": "t", "source": source} for source in [*odd, *none, *named]])
    (tmp_path / "c.jsonl").write_bytes(lines + b'{"\\udc00": 1}\n')
    found = read_all(tmp_path)
    assert [one.source for one in found if isinstance(one, Document)] == ["c"] * 3 + [*named.values()]
    bad = [one for one in found if isinstance(one, BadDocument)]
    assert [one.where for one in bad] == [f"c.jsonl:{line}" for line in (1, 2, 3, 4, 5, 6, 15)]
    assert all("field 'source': " in one.problem for one in bad[:-1])
    assert "a float; a source is a string or a whole number" in bad[1].problem
    for one in bad:
        f"{one.where} {one.problem}".encode()


def test_folders_give_sources_in_one_normal_form(tmp_path):
    for name in ("ü", unicodedata.normalize("NFD", "ü")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("words")
    assert {one.source for one in read_all(tmp_path)} == {"ü"} == {source_name("u\u0308", "x")}


def test_bytes_and_whole_numbers_in_a_table(tmp_path):
    texts = ["é".encode(), b"\xff", codecs.BOM_UTF8 + b"b", None]
    pq.write_table(pa.table({"text": texts, "source": [7, 8, None, 9]}), tmp_path / "t.parquet")
    first, bad, third, empty = read_all(tmp_path)
    assert (first.text, first.source, third.text, third.source) == ("é", "7", "b", "t")
    assert bad.reason == "not UTF-8" and "no text" in empty.problem


def test_files_that_are_not_read_are_counted_by_kind(tmp_path):
    for name in (
        "a.tsv",
        "b.tsv",
        "x.log",
        "README",
        "_index.md",
        ".git/config",
        ".git/x.txt",
        "y.cache.arrow",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    with pytest.raises(ValueError, match=r"There are other files: 2 named \.\*, 2 \.tsv, "):
        open_corpus(str(tmp_path))
    (tmp_path / "read.txt").write_text("words")
    (tmp_path / "none.txt").touch()
    save_dataset(tmp_path / "saved")
    (tmp_path / "saved/README.md").write_text("of the dataset")
    corpus = open_corpus(str(tmp_path))
    assert corpus.not_read == {
        ".tsv": 2, ".log": 1, "without an ending": 1, "named _*": 1, "named .*": 2, ".arrow": 1, "empty": 1, ".md": 1
    }  # fmt: skip
    assert len(corpus.files) == 3
