"""What no specialist is made of or over: other soups, other settings, other embedders, twins that do not compare."""

from __future__ import annotations

import pytest

from flows.jobs import specialize as job
from flows.settings import Specialize
from flows.specialists.maker import SpecialistMaker
from pipeline.embeddings import embedder
from soe_model.files.soup import SoupOfExperts
from storage_schema.manifest import StoreError, read_manifest
from tests.flows.cli.specialist_commands import run
from tests.served_soup import make_served_soup, sentences


def test_what_stands_in_the_way_is_named(soup, texts, made, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    assert run("specialize", soup, "--texts", texts, "--out", tmp_path / "full") == 1
    assert "full exists and holds no specialist" in capsys.readouterr().err
    (tmp_path / "law.txt").write_text(sentences("law", 1)[0])
    assert run("specialize", soup, "--texts", tmp_path / "law.txt", "--out", made) == 1
    assert "was built with other settings" in capsys.readouterr().err
    other = make_served_soup(tmp_path / "other", steps=1)
    for command in (["verify", made], ["materialize", made, "--out", tmp_path / "x"]):
        assert run(*command, "--soup", other) == 1
        assert "the recipe is of the soup" in capsys.readouterr().err
    (other / "expert-002.safetensors").write_bytes(b"x")
    assert run("specialize", other, "--texts", texts, "--out", tmp_path / "y") == 1
    assert "expert-002.safetensors has 1 bytes" in capsys.readouterr().err
    assert run("specialize", "nothing", "--texts", texts, "--out", tmp_path / "y") == 1
    assert "no soup at" in capsys.readouterr().err
    assert run("specialize", soup, "--texts", tmp_path / "nowhere", "--out", tmp_path / "y") == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--learning-rate", 0.1],
            "learning_rate is 0.1, which only method learned-coefficients or",
        ),
        (["--method", "blended", "--learning-rate", 0.1], "0.1, which method=blended does not use"),
        (["--learning-steps", 7], "only method learned-coefficients or fine-tuned uses: leave it out"),
        (["--method", "learned-coefficients", "--replay-share", 0.5], "or choose method fine-tuned"),
        (["--method", "fine-tuned", "--replay-share", 0.5], "needs a store to replay"),
        (["--method", "fine-tuned", "--replay-store", "x"], "'x' without a share of it"),
    ],
)
def test_settings_that_the_method_has_no_use_for_are_refused(soup, texts, tmp_path, options, said, capsys):
    assert run("specialize", soup, "--texts", texts, "--out", tmp_path / "a", *options) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_another_embedder_of_the_same_name_is_refused(soup, texts, tmp_path, monkeypatch):
    opened = SoupOfExperts.open(soup)
    made_with = opened.manifest.configuration["embedder"]
    made_with["weights"] = embedder.weights_digest(SpecialistMaker(opened).embedder)
    assert SpecialistMaker(opened).embedder is not None
    made_with["weights"] = "other"
    with pytest.raises(StoreError, match="other weights than the one the store was built with"):
        SpecialistMaker(opened).assign(["a text"])


def test_a_twin_that_cannot_be_compared_is_refused(soup, texts, tmp_path, capsys):
    options = ["--texts", texts, "--out", tmp_path / "a"]
    assert run("specialize", soup, *options, "--compare-with", soup) == 1
    assert "a soup of 8 experts; name a generic twin" in capsys.readouterr().err
    twin = make_served_soup(tmp_path / "twin", experts=0)
    assert run("specialize", soup, *options, "--compare-with", twin) == 0
    assert "twin" in read_manifest(tmp_path / "a", "specialist").counts["losses"]
    other = make_served_soup(tmp_path / "other", experts=0, vocab_size=300)
    assert run("specialize", soup, *options, "--compare-with", other, "--rebuild") == 1
    assert "has another tokenizer" in capsys.readouterr().err


def test_what_is_finished_is_whole_and_the_same(soup, texts, made, tmp_path, capsys):
    settings = Specialize(soup=str(soup), texts={"kitchen": str(texts)}, output=str(tmp_path))
    job.run_here(settings)
    model = tmp_path / "kitchen/model.safetensors"
    whole = model.read_bytes()
    for damage in (b"x", None):
        model.unlink() if damage is None else model.write_bytes(damage)
        job.run_here(settings)
        assert model.read_bytes() == whole
    capsys.readouterr()
    job.run_here(settings)
    assert "is finished; nothing to make" in capsys.readouterr().out
    (tmp_path / "law.txt").write_text("\n\n".join(sentences("law", 6)))
    assert (
        run("specialize", soup, "--texts", tmp_path / "law.txt", "--out", tmp_path / "kitchen", "--rebuild")
        == 0
    )
    with pytest.raises(StoreError, match="kitchen was built with other settings"):
        job.run_here(settings)
    (tmp_path / "made.json").write_text('{"report": 1}')
    with pytest.raises(StoreError, match="kitchen was built with other settings"):
        job.run_here(settings)
