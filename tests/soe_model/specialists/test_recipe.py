"""Recipes: a few kilobytes that rebuild every bit, and what is refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from soe_model.exports.mergekit import write_mergekit
from soe_model.exports.parts import new_folder
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import (
    BLEND_COEFFICIENTS,
    BLEND_DOMAIN_WEIGHTS,
    Recipe,
    blend,
    check_recipe,
    instance_of,
    make_recipe,
    read_recipe,
)
from soe_model.specialists.specialist_files import (
    MODEL,
    check_target,
    materialize,
    verify_specialist,
    write_model,
    write_specialist,
)
from storage_schema.manifest import FileEntry, Manifest, StoreError, file_digest, read_manifest
from tests.soe_model.files.test_soup import WEIGHTS, made, recipes_for, write  # noqa: F401


@pytest.fixture
def soup(made):  # noqa: F811
    return SoupOfExperts.open(made[0])


def test_the_recipe_alone_rebuilds_every_file(soup, tmp_path):
    write(soup, tmp_path / "a")
    alone = tmp_path / "mailed.json"
    shutil.copyfile(tmp_path / "a/specialist.json", alone)
    materialize(read_recipe(alone), soup, tmp_path / "b")
    for name in (MODEL, "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert verify_specialist(tmp_path / "b", soup).problems == ()


def test_a_recipe_of_before_the_method_blended_rebuilds_every_bit(soup, tmp_path):
    how = {"method": "nearest-centroids", "rule": "flat", "num_texts": 200, "texts": "d" * 64}
    weights_K = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25])
    coefficients_N = soup.coefficients(weights_K[None])[0]
    body = {
        **how,
        "coefficients": coefficients_N.tolist(),
        "domain_weights": {"1": 0.25, "2": 0.5, "4": 0.25},
    }
    old = Manifest(kind="specialist", configuration=body, inputs={"soup": soup.digest}, counts={}, files=())
    (tmp_path / "specialist.json").write_text(old.to_json())
    recipe = read_recipe(tmp_path / "specialist.json")
    assert recipe.how == how and recipe.configuration() == body
    materialize(recipe, soup, tmp_path / "made")
    instance_P = soup.instances(coefficients_N[None])[0]
    found = load_file(tmp_path / "made" / MODEL)
    for name, tensor in unflatten(instance_P, soup.layout).items():
        assert torch.equal(tensor, found.get(name, tensor)), name
    assert verify_specialist(tmp_path / "made", soup).problems == ()


def test_a_recipe_of_200_domains_and_128_experts_is_under_10_kb(soup, tmp_path):
    random = np.random.default_rng(0)
    recipe = Recipe(
        soup="0" * 64,
        coefficients=tuple(float(str(np.float32(a))) for a in random.normal(size=128)),
        domain_weights={int(i): 0.005 for i in random.choice(4096, 200, replace=False)},
        how={"method": "nearest-centroids", "rule": "flat", "num_texts": 200},
    )
    write(soup, tmp_path / "a")
    body = json.loads((tmp_path / "a/specialist.json").read_text())
    body["configuration"] = recipe.configuration()
    assert len(json.dumps(body, indent=1)) < 10_000


def test_one_altered_bit_is_found_and_named(soup, tmp_path):
    write(soup, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / MODEL)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[2] = torch.nextafter(tensors[name].view(-1)[2], torch.tensor(9.0))
    save_file(tensors, tmp_path / "a" / MODEL, metadata={"format": "pt"})
    problems = " ".join(verify_specialist(tmp_path / "a", soup).problems)
    assert f"{name} differs in 1 of" in problems and "model.safetensors was altered" in problems
    del tensors[name]
    save_file(tensors | {"more": torch.zeros(2)}, tmp_path / "a" / MODEL)
    problems = " ".join(verify_specialist(tmp_path / "a", soup).problems)
    assert f"the tensor {name} is missing" in problems and "there is a tensor more more" in problems


def test_a_configuration_that_is_not_the_soups_is_found(soup, tmp_path):
    """Even if its new sha256 stands in the manifest. So is an extra file that transformers would read."""
    write(soup, tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    (tmp_path / "a/adapter_config.json").write_text("{}")
    manifest = read_manifest(tmp_path / "a", "specialist")
    files = [
        FileEntry(path=e.path, bytes=(p := tmp_path / "a" / e.path).stat().st_size, sha256=file_digest(p))
        for e in manifest.files
    ]
    (tmp_path / "a/specialist.json").write_text(replace(manifest, files=tuple(files)).to_json())
    problems = verify_specialist(tmp_path / "a", soup).problems
    assert problems == (
        "there is adapter_config.json, which no specialist has.",
        "config.json is not what the soup and this version of transformers give.",
    )


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


def test_a_tokenizer_setting_that_earlier_folders_lack_is_no_difference(soup, tmp_path):
    write(soup, tmp_path / "a")
    path = tmp_path / "a/tokenizer_config.json"
    settings = json.loads(path.read_text())
    for content, problems in (({}, 0), ({"split_special_tokens": False}, 1)):
        path.write_text(
            json.dumps({k: v for k, v in settings.items() if k != "split_special_tokens"} | content)
        )
        found = verify_specialist(tmp_path / "a", soup).problems
        assert sum("tokenizer_config.json is not what" in problem for problem in found) == problems


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


def measured(loss):
    return {"losses": {"made": loss, "generic_instance": 3.0, "windows": 4}}


def recipe_and_instance(soup):
    recipe = make_recipe(soup, coefficients_N=soup.coefficients(WEIGHTS)[0], how={"method": "x"})
    return recipe, instance_of(recipe, soup)


def test_a_recipe_that_was_altered_or_is_none_is_refused(soup, tmp_path):
    write(soup, tmp_path / "a")
    path = tmp_path / "a/specialist.json"
    body = json.loads(path.read_text())
    body["configuration"]["coefficients"][0] += 1
    path.write_text(json.dumps(body))
    with pytest.raises(StoreError, match="specialist.json was altered"):
        read_recipe(tmp_path / "a")
    path.write_text("[]")
    with pytest.raises(StoreError, match="is not a manifest"):
        read_recipe(path)
    with pytest.raises(StoreError, match="there is no recipe at"):
        read_recipe(tmp_path / "nothing.json")


def test_a_recipe_of_another_soup_or_of_other_numbers_is_refused(soup):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    with pytest.raises(ValueError, match="the recipe is of the soup 000000000000"):
        check_recipe(replace(recipe, soup="0" * 64), soup)
    with pytest.raises(ValueError, match="has 3 coefficients; the soup has 4 experts"):
        check_recipe(replace(recipe, coefficients=recipe.coefficients[:3]), soup)
    for bad in (float("nan"), float("inf"), 1e60):
        with pytest.raises(ValueError, match="coefficient 1 of the recipe is .*; it must be finite"):
            check_recipe(replace(recipe, coefficients=(0.0, bad, 0.0, 0.0)), soup)
    with pytest.raises(ValueError, match="names domain 5; the soup has 5 domains"):
        check_recipe(replace(recipe, domain_weights={5: 1.0}), soup)


@pytest.mark.parametrize(
    "change",
    [{"coefficients": (0.5,)}, {"coefficients": (0.0, float("nan"), 0.0, 0.0)}, {"domain_weights": {5: 1}}],
)
def test_a_recipe_that_does_not_fit_is_named_with_its_soup_and_the_way_out(soup, change):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    with pytest.raises(ValueError) as caught:
        check_recipe(replace(recipe, tensors="ab" * 32, **change), soup)
    message = str(caught.value)
    assert "tensors abababababab…" in message and str(soup.folder) in message
    assert "use the specialist.json as it was written, or make the specialist again" in message


@pytest.mark.parametrize("method", ["nearest-centroids", "fine-tuned", "average-domain-weights"])
def test_coefficients_of_other_domain_weights_are_refused(soup, method):
    """A card would say of it what is not so."""
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    recipe = replace(recipe, how={"method": method})
    check_recipe(recipe, soup)
    check_recipe(replace(recipe, how={"method": "learned-coefficients"}, coefficients=(0.5,) * 4), soup)
    with pytest.raises(ValueError, match="coefficients are up to .* from those of its domain weights"):
        check_recipe(replace(recipe, domain_weights={3: 1.0}), soup)
    with pytest.raises(ValueError, match="of the recipe, domain weights sum to 0.5"):
        check_recipe(replace(recipe, domain_weights={3: 0.5}), soup)


def test_tensors_that_come_out_otherwise_are_not_written(soup, tmp_path):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    for write_it in (materialize, lambda recipe, soup, out: write_mergekit(soup, recipe, out)):
        with pytest.raises(StoreError, match="the recipe says the tensors aaaaaaaaaaaa"):
            write_it(replace(recipe, tensors="a" * 64), soup, tmp_path / "a")
        assert not (tmp_path / "a").exists()


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


def test_averaging_coefficients_averages_the_models(soup, tmp_path):
    recipes = recipes_for(soup)
    first, second = soup.instances(torch.stack([recipe.coefficients_N for recipe in recipes]))
    blended = blend(recipes, [3, 1], soup, of=BLEND_COEFFICIENTS)
    instance = soup.instances(blended.coefficients_N[None])[0]
    torch.testing.assert_close(instance, 0.75 * first + 0.25 * second, rtol=0, atol=1e-6)
    assert blended.domain_weights is None
    write_specialist(soup, tmp_path / "a", blended, instance)
    assert verify_specialist(tmp_path / "a", soup).problems == ()


def test_averaging_domain_weights_is_the_specialist_of_the_mean_mixture(soup):
    recipes = recipes_for(soup)
    blended = blend(recipes, [1, 1], soup, of=BLEND_DOMAIN_WEIGHTS)
    mean = WEIGHTS.mean(0)
    torch.testing.assert_close(blended.coefficients_N, soup.coefficients(mean[None])[0], rtol=0, atol=1e-6)
    models = blend(recipes, [1, 1], soup, of=BLEND_COEFFICIENTS)
    assert (blended.coefficients_N - models.coefficients_N).abs().max() > 1e-4  # the router is not linear


def test_blends_that_make_no_sense_are_refused(soup):
    recipes = recipes_for(soup)
    for shares, message in (([1], "2 recipes and 1 shares"), ([0, 0], "not all 0"), ([1, -1], "at least 0")):
        with pytest.raises(ValueError, match=message):
            blend(recipes, shares, soup, of=BLEND_COEFFICIENTS)
    given = make_recipe(soup, coefficients_N=torch.ones(4), how={"method": "given"})
    with pytest.raises(ValueError, match="has none to average"):
        blend([given, given], [1, 1], soup, of=BLEND_DOMAIN_WEIGHTS)
    tuned = replace(given, how={"method": "fine-tuned"})
    with pytest.raises(ValueError, match="fine-tuned"):
        blend([tuned, given], [1, 1], soup, of=BLEND_COEFFICIENTS)
    with pytest.raises(ValueError, match="its recipe does not rebuild it"):
        materialize(tuned, soup, None)


def test_an_export_leaves_a_folder_of_the_users_alone(tmp_path):
    """Named as work that another program left beside it."""
    (tmp_path / "export.partial").mkdir()
    (tmp_path / "export.partial/mine.txt").write_text("precious")
    with new_folder(tmp_path / "export") as work:
        (work / "part").write_text("whole")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other"):
        raise RuntimeError
    assert (tmp_path / "export.partial/mine.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "export.partial"]
