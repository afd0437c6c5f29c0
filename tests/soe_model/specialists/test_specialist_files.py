"""A specialist's folder: written, written again, replaced; and what is left alone or refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import instance_of, make_recipe
from soe_model.specialists.specialist_files import (
    MODEL,
    check_target,
    materialize,
    write_model,
    write_specialist,
)
from soe_model.specialists.verification import verify_specialist
from storage_schema.manifest import StoreError, read_manifest
from tests.soe_model.toy_soup import WEIGHTS, write


def measured(loss):
    return {"losses": {"made": loss, "generic_instance": 3.0, "windows": 4}}


def recipe_and_instance(soup):
    recipe = make_recipe(soup, coefficients_N=soup.coefficients(WEIGHTS)[0], how={"method": "x"})
    return recipe, instance_of(recipe, soup)


def test_what_is_written_again_has_the_new_report_and_every_byte(soup, tmp_path):
    """Measured on other texts it has other losses; a bit that was lost is there again."""
    recipe, instance_P = recipe_and_instance(soup)
    write_specialist(soup, tmp_path / "a", recipe, instance_P, report=measured(2.0))
    write_specialist(soup, tmp_path / "a", recipe, instance_P, report=measured(1.0))
    assert read_manifest(tmp_path / "a", "specialist").counts["losses"] == measured(1.0)["losses"]
    content = bytearray((tmp_path / "a" / MODEL).read_bytes())
    content[-1] ^= 1
    (tmp_path / "a" / MODEL).write_bytes(content)
    materialize(recipe, soup, tmp_path / "a")
    assert not verify_specialist(tmp_path / "a", soup).problems
    assert read_manifest(tmp_path / "a", "specialist").counts["losses"] == measured(1.0)["losses"]


def test_parameters_learned_from_other_texts_are_another_specialist(soup, tmp_path):
    recipe, instance_P = recipe_and_instance(soup)
    recipe = replace(recipe, how=recipe.how | {"method": "fine-tuned"})
    write_specialist(soup, tmp_path / "a", recipe, instance_P)
    with pytest.raises(StoreError, match="holds another specialist of the same coefficients.*--rebuild"):
        write_specialist(soup, tmp_path / "a", recipe, instance_P + 1)
    write_specialist(soup, tmp_path / "a", recipe, instance_P + 1, replace=True)
    found = load_file(tmp_path / "a" / MODEL)
    name = next(iter(found))
    assert torch.equal(found[name], unflatten(instance_P + 1, soup.layout)[name])


def test_neighbours_of_a_specialists_folder_are_the_users(soup, tmp_path):
    """Folders named as ours were while it is put together, or replaced."""
    for name in ("a.old", "b.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("mine")
    write(soup, tmp_path / "a")
    with pytest.raises(StoreError, match="b.partial is where b would be put together.*Move it away"):
        write(soup, tmp_path / "b")
    assert all((tmp_path / name / "precious.txt").exists() for name in ("a.old", "b.partial"))


def test_the_end_of_text_of_a_tokenizer_of_the_users_own(soup, tmp_path, monkeypatch):
    """Not added to the vocabulary under our name, where no embedding is."""
    from transformers import AutoTokenizer

    own = (soup.folder / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
    (tmp_path / "tokenizer.json").write_text(own)
    _, instance_P = recipe_and_instance(soup)
    monkeypatch.setattr(soup, "folder", tmp_path)
    write_model(soup, instance_P, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.eos_token == "</s>" and tokenizer.eos_token_id == 0


def test_many_write_one_specialist_at_once(soup, tmp_path):
    """One after the other, each whole; another one of other coefficients is replaced or refused."""
    recipe, instance_P = recipe_and_instance(soup)
    other = make_recipe(soup, coefficients_N=soup.coefficients(WEIGHTS)[1], how={"method": "x"})
    other_P = instance_of(other, soup)

    def write_one(number):
        chosen = ((recipe, instance_P), (other, other_P))[number % 2]
        write_specialist(soup, tmp_path / "a", *chosen, replace=True)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write_one, range(24)))
    assert not verify_specialist(tmp_path / "a", soup).problems
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_made(soup, tmp_path):
    recipe, instance_P = recipe_and_instance(soup)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(StoreError, match=r"file/x cannot be made \(.*/file: .*\). Choose another folder"):
        write_specialist(soup, tmp_path / "file/x", recipe, instance_P)
    with pytest.raises(StoreError, match="dangling exists and holds no specialist"):
        check_target(tmp_path / "dangling")


def test_what_a_link_points_to_is_replaced_again_and_again(soup, tmp_path):
    recipe, instance_P = recipe_and_instance(soup)
    write_specialist(soup, tmp_path / "a", recipe, instance_P)
    (tmp_path / "link").symlink_to("a")
    for loss in (1.0, 2.0, 3.0):
        write_specialist(soup, tmp_path / "link", recipe, instance_P, report=measured(loss), replace=True)
        assert read_manifest(tmp_path / "a", "specialist").counts["losses"]["made"] == loss
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2
