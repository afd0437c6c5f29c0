"""Texts as specialist sets: a bounded sample of all of them, whatever their order."""

import json
import random

import pytest

from pipeline.specialists.sets import set_of_texts


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def records(number, field="text"):
    kinds = ("cats and dogs", "ships and sails")
    return [{field: f"{kinds[2 * n // number]}, text number {n}"} for n in range(number)]


def test_a_sample_is_of_the_whole_file_and_the_same_for_any_order(tmp_path):
    ordered = records(600)
    mixed = random.Random(0).sample(ordered, len(ordered))
    one, other = (
        set_of_texts("t", write(tmp_path / f"{n}.jsonl", some), max_texts=200, evaluation_passages=0)
        for n, some in enumerate((ordered, mixed))
    )
    assert one == other and len(one.texts) == 200
    assert 60 < sum("cats" in text for text in one.texts) < 140
    assert one.notes == ["200 of 600 passages were taken, spread over all of the texts."]
    assert not set_of_texts(
        "t", write(tmp_path / "few.jsonl", ordered[:9]), max_texts=9, evaluation_passages=0
    ).notes


def test_passages_of_one_document_have_its_number(tmp_path):
    long = [
        {"text": "\n\n".join(f"{word} {n} {'and more ' * 90}" for n in range(8))}
        for word in ("cats", "ships")
    ]
    found = set_of_texts("t", write(tmp_path / "a.jsonl", long), max_texts=9, evaluation_passages=0)
    assert len(found.texts) == len(found.documents) > 4 and set(found.documents) == {0, 1}
    kinds = [text.split()[0] for text in found.texts if text.split()[0] in ("cats", "ships")]
    numbers = [
        number for text, number in zip(found.texts, found.documents, strict=True) if text.split()[0] in kinds
    ]
    assert len(set(zip(kinds, numbers, strict=True))) == 2


def long_text(passages):
    """Cats in its first half, ships in the second; about as many passages as asked for."""
    kinds = ("cats", "ships")
    return "".join(f"{kinds[2 * n // passages]} {n} ".ljust(1900, "x") + "\n\n" for n in range(passages))


def in_halves(texts):
    return [sum(text.startswith(kind) for text in texts) for kind in ("cats", "ships")]


@pytest.mark.parametrize("files", [1, 3])
def test_passages_of_a_long_text_are_of_the_whole_text(tmp_path, files):
    for n in range(files):
        (tmp_path / f"{n}.txt").write_text(long_text(100 + n))
    one = set_of_texts("t", str(tmp_path), max_texts=30, evaluation_passages=0)
    assert len(one.texts) == 30 and min(in_halves(one.texts)) >= 12
    assert one.notes[0].startswith("30 of ") and one.notes[0].endswith("spread over all of the texts.")
    few = set_of_texts("t", str(tmp_path), max_texts=10, evaluation_passages=None)  # fewer than are drawn
    assert len(few.texts) == 10 and min(in_halves(few.texts)) >= 3


def test_passages_of_a_long_text_stand_in_its_order(tmp_path):
    """One file leaves room, so the other is drawn from twice; the end of a text is what it is evaluated on."""
    (tmp_path / "a.txt").write_text("a short text")
    (tmp_path / "b.txt").write_text(long_text(100))
    one = set_of_texts("t", str(tmp_path), max_texts=50, evaluation_passages=10)
    numbers = [int(text.split()[1]) for text in (*one.texts, *one.evaluation) if text != "a short text"]
    assert len(numbers) >= 50 and numbers == sorted(numbers)


def test_every_file_has_its_share(tmp_path):
    write(tmp_path / "a.jsonl", records(500))
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text(f"the only text of {name}")
    texts = set_of_texts("t", str(tmp_path), max_texts=30, evaluation_passages=0).texts
    assert len(texts) == 30 and {"the only text of b", "the only text of c"} <= {*texts}


@pytest.mark.parametrize(("files", "in_each"), [(600, 1), (150, 20)])
def test_many_small_files_are_taken_from_alike(tmp_path, files, in_each):
    """Not the first ones by name, where there are more of them, or nearly as many, as passages are wanted."""
    for number in range(files):
        write(
            tmp_path / f"{number:03d}.jsonl", [{"text": f"text {n} of file {number}"} for n in range(in_each)]
        )
    texts = set_of_texts("t", str(tmp_path), max_texts=200, evaluation_passages=0).texts
    of_files = [int(text.split()[-1]) for text in texts]
    assert len(texts) == 200 and 60 < sum(number >= files / 2 for number in of_files) < 140
    assert in_each == 1 or {*of_files} == {*range(files)}


def test_fields_are_named_as_for_a_build(tmp_path):
    path = write(tmp_path / "c.jsonl", records(5, "content"))
    assert len(set_of_texts("t", path, max_texts=9, evaluation_passages=0, text_field="content").texts) == 5
    with pytest.raises(
        ValueError, match=r"no text in .* First: c.jsonl:1: field 'text' holds no text; fields: content"
    ):
        set_of_texts("t", path, max_texts=9, evaluation_passages=0)


@pytest.mark.parametrize("where", [0, 300, 599])
def test_a_bad_row_is_counted_wherever_it_stands(tmp_path, where):
    rows = records(600)
    rows[where] = {"no": "text"}
    one = set_of_texts("t", write(tmp_path / "a.jsonl", rows), max_texts=200, evaluation_passages=0)
    assert "1 documents of the texts could not be read." in one.notes
    rows = [{"no": "text"}] * 101 + rows
    with pytest.raises(
        ValueError,
        match=r"specialist set t: 101 documents or more .* texts may have 100\. First: a\.jsonl:1: ",
    ) as refused:
        set_of_texts("t", write(tmp_path / "a.jsonl", rows), max_texts=200, evaluation_passages=0)
    assert "max_bad_documents" not in str(refused.value)  # no setting where texts are read


def test_a_damaged_file_of_texts_is_named_with_what_to_do(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=1))
    (tmp_path / "b.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"texts may have 0\. First: a\.jsonl.* leave them out") as refused:
        set_of_texts("t", str(tmp_path), max_texts=9, evaluation_passages=0)
    assert "max_damaged_files" not in str(refused.value)


def test_files_that_are_passed_over_are_said_by_kind(tmp_path):
    for name in ("a.txt", "b.tsv", "c.tsv", "_d.md", ".e.txt"):
        (tmp_path / name).write_text(f"a text in {name}")
    one = set_of_texts("t", str(tmp_path), max_texts=9, evaluation_passages=0)
    assert len(one.texts) == 1
    assert one.notes == ["Files of the texts that were not read: 2 .tsv, 1 named .*, 1 named _*."]


def test_texts_are_left_where_one_document_is_large(tmp_path):
    """The large one may come last by its hash, and be cut into the evaluation."""
    for try_ in range(8):
        small = [{"text": f"small document {try_} {n}"} for n in range(9)]
        large = {"text": "".join(f"{try_}: sentence {n} of the large one.\n\n" for n in range(6000))}
        path = write(tmp_path / f"{try_}.jsonl", [*small, large])
        one = set_of_texts("t", path, max_texts=200, evaluation_passages=20)
        assert len(one.evaluation) == 20 and len(one.texts) >= 20
        assert not {*one.evaluation} & {*one.texts}
