from __future__ import annotations

import json

import pytest

from pipeline.corpus.documents import BadDocument, Document
from pipeline.corpus.listing import open_corpus
from tests.extras import needs
from tests.toy_corpora import RECORDS, read_all, save_dataset, save_dictionary


def test_rows_of_the_shards_are_documents(tmp_path):
    save_dataset(tmp_path / "wiki", RECORDS[:5], shards=2, batch=2)
    first, second = "data-00000-of-00002.arrow", "data-00001-of-00002.arrow"
    expected = [(f"{first}:{row}", RECORDS[2 * row]) for row in range(3)]
    expected += [(f"{second}:{row}", RECORDS[2 * row + 1]) for row in range(2)]
    assert read_all(tmp_path / "wiki") == [
        Document(name, record["source"], record["text"]) for name, record in expected
    ]
    assert [bad.where for bad in read_all(tmp_path / "wiki", text_field="body")] == [first, second]
    documents = read_all(tmp_path / "wiki", source_field="other")
    assert {document.source for document in documents} == {"wiki"}


def test_dictionary_reads_the_splits_it_names_and_a_folder_may_hold_other_files_too(tmp_path):
    records = [{"text": record["text"]} for record in RECORDS]
    save_dictionary(tmp_path / "books", {"train": records, "test": records[:3]})
    save_dataset(tmp_path / "books" / "stale", records)
    (tmp_path / "notes.md").write_text("a note")
    (tmp_path / "state.json").write_text('{"text": "lines, and no dataset beside it"}\n')
    (tmp_path / "cache.arrow").write_bytes(b"of something else")
    documents = read_all(tmp_path)
    assert [type(document) for document in documents] == [Document] * 55
    assert sorted({document.document_id.rpartition("/")[0] for document in documents}) == [
        "",
        "books/test",
        "books/train",
    ]
    assert {document.source for document in documents} == {"books", tmp_path.name, "state"}
    assert {document.source for document in read_all(tmp_path / "books")} == {"train", "test"}
    assert len(read_all(tmp_path / "books" / "test")) == 3


def test_a_selection_of_rows_is_refused(tmp_path):
    save_dataset(tmp_path, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ValueError, match=r"state\.json is a selection.*flatten_indices\(\)"):
        open_corpus(str(tmp_path))
    save_dataset(tmp_path, _indices_data_files=None)
    assert len(read_all(tmp_path)) == len(RECORDS)


def test_incomplete_datasets_are_refused(tmp_path):
    save_dictionary(tmp_path, {"train": RECORDS})
    with pytest.raises(ValueError, match="one file of a saved dataset.*Give the dataset's folder"):
        open_corpus(str(tmp_path / "train" / "data-00000-of-00002.arrow"))
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match="names the file 'train/data-00001-of-00002.arrow'.*not there"):
        open_corpus(str(tmp_path))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "gone"]}))
    with pytest.raises(ValueError, match="names the split 'gone'.*not there"):
        open_corpus(str(tmp_path))
    for broken, problem in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"_data_files": 7}', "as save_"),
    ):
        (tmp_path / "train" / "state.json").write_text(broken)
        with pytest.raises(ValueError, match=f"state.json .*{problem}"):
            open_corpus(str(tmp_path / "train"))


def test_truncated_shard_gives_what_comes_before_and_names_the_row(tmp_path):
    save_dataset(tmp_path, shards=1, batch=5)
    shard = tmp_path / "data-00000-of-00001.arrow"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    *documents, bad = read_all(tmp_path)
    assert 0 < len(documents) < len(RECORDS) and len(documents) % 5 == 0
    assert isinstance(bad, BadDocument) and bad.where == f"{shard.name}:{len(documents)}"


def test_what_the_datasets_package_saves(tmp_path):
    needs("datasets", extra="interop")
    import datasets  # deptry: ignore[DEP004]

    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict(train=whole, test=whole.select([3, 1, 2])).save_to_disk(tmp_path / "two")
    assert [document.text for document in read_all(tmp_path / "one")] == [
        record["text"] for record in RECORDS
    ]
    chosen = [document for document in read_all(tmp_path / "two") if document.document_id.startswith("test/")]
    assert [document.text for document in chosen] == [RECORDS[row]["text"] for row in (3, 1, 2)]
