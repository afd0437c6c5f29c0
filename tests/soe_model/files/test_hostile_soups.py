"""Soups, recipes and checkpoints that mean harm: one error that names the file, no memory taken, no code run."""

import builtins
import errno
import json
import os

import pytest
import torch

from flows.serving.recipe_store import RecipeBox
from flows.training.ray_internals.checkpoint_registry import SNAPSHOT, mend
from soe_model.files.bank_files import MappedTensors, expert_file
from soe_model.files.soup import SoupOfExperts
from soe_model.files.write_soup import write_soup
from soe_model.model.backbone import hugging_face_config
from soe_model.specialists.recipe import check_recipe, make_recipe, read_recipe
from soe_model.training.checkpoint_files import is_whole
from storage_schema.layout import DOMAIN_WORDS
from storage_schema.manifest import (
    Manifest,
    StoreError,
    UnavailableError,
    read_manifest,
)
from storage_schema.stage import open_stage
from storage_schema.tree import Tree
from tests.hostile import JSON, SAFETENSORS, forged, safetensors
from tests.soe_model.training.test_trainer import BACKBONE, K, make_trainer
from tests.toy_store import make_store


@pytest.fixture
def soup(tmp_path):
    """A soup on disk, not trained."""
    store = make_store(tmp_path / "store", [40] * K)
    described = {
        "backbone": BACKBONE,
        "num_experts": 4,
        "num_domains": K,
        "router_hidden": 6,
        "expert_std": 0.05,
    }
    stage = open_stage(tmp_path / "soup", kind="soup", configuration={"soup": described}, inputs={})
    tree = Tree.read(store / "domains/tree.arrow")
    write_soup(stage.work, make_trainer(), tree=tree, tokenizer=store / "tokenizer/tokenizer.json")
    stage.finish({})
    return tmp_path / "soup"


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_a_bank_of_harmful_headers(tmp_path, content):
    (tmp_path / "shared.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="shared.safetensors"):
        MappedTensors(tmp_path / "shared.safetensors")


def test_tensors_that_do_not_begin_at_a_float(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    (tmp_path / "a.safetensors").write_bytes(safetensors(header + b" " * (2 - len(header) % 4)))
    with pytest.raises(StoreError, match="no multiple of 4"):
        MappedTensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("number", "passing"), [(errno.EIO, True), (errno.EACCES, False)])
@pytest.mark.parametrize("name", ["router.safetensors", "shared.safetensors"])
def test_a_soup_that_cannot_be_read_now_need_not_be_rebuilt(soup, monkeypatch, name, number, passing):
    real = builtins.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(StoreError, match=f"cannot read .*{name}: {os.strerror(number)}") as refused:
        SoupOfExperts.open(soup, verify=False)
    assert "rebuild" not in str(refused.value)
    assert isinstance(refused.value, UnavailableError) == passing


@pytest.mark.parametrize("name", ["router.safetensors", expert_file(2), "shared.safetensors"])
def test_a_soup_whose_files_are_others(soup, name):
    for content in (*SAFETENSORS.values(), safetensors({})):
        (soup / name).write_bytes(content)
        with pytest.raises(StoreError, match=name):
            SoupOfExperts.open(soup, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"num_domains": 10**12},
        {"num_experts": 10**12},
        {"num_experts": -1},
        {"num_experts": "4"},
        {"num_experts": 4.0},
        {"router_hidden": 10**12},
        {"backbone": "gpt2"},
        {"backbone": None},
        {"more": 1},
    ],
)
def test_a_soup_of_impossible_numbers(soup, change):
    """Nothing of the size that it claims is made before its files are seen to have it."""
    manifest = read_manifest(soup, "soup")
    described = manifest.configuration["soup"] | change
    (soup / "soup.json").write_text(forged(manifest, configuration={"soup": described}))
    with pytest.raises(StoreError, match="soup.json describes no soup|router.safetensors is no router of"):
        SoupOfExperts.open(soup, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"n_embd": 1 << 30, "n_head": 1},
        {"n_layer": 10**9},
        {"n_head": 0},
        {"n_head": 7},
        {"n_embd": "wide"},
        {"vocab_size": -5},
        {"model_type": "no such"},
        {"model_type": "bert"},
        {"auto_map": {"AutoModelForCausalLM": "evil--model.Model"}},
        {"attn_implementation": "evil/kernel"},
        {"attn_implementation": {"": "evil/kernel"}},
        {"text_config": {"experts_implementation": "evil/kernel:run"}},
    ],
)
def test_a_backbone_that_is_not_the_banks_or_names_code(soup, change):
    manifest = read_manifest(soup, "soup")
    described = manifest.configuration["soup"]
    described = described | {"backbone": described["backbone"] | change}
    (soup / "soup.json").write_text(forged(manifest, configuration={"soup": described}))
    opened = SoupOfExperts.open(soup, verify=False)
    with pytest.raises(StoreError, match="soup.json cannot be made|disagree on the parameter"):
        opened.specialist(torch.full((K,), 1 / K))


def test_attention_of_the_libraries_own_may_be_chosen():
    assert hugging_face_config(BACKBONE | {"attn_implementation": "eager"})._attn_implementation == "eager"


def test_a_soup_must_name_what_it_reads(soup):
    """What its manifest leaves out would not be verified: any file, or a pipe."""
    SoupOfExperts.open(soup)
    manifest = read_manifest(soup, "soup")
    kept = [entry for entry in json.loads(manifest.to_json())["files"] if entry["path"] != expert_file(3)]
    (soup / "soup.json").write_text(forged(manifest, files=kept))
    with pytest.raises(StoreError, match="soup.json does not name expert-003.safetensors"):
        SoupOfExperts.open(soup)


def test_domain_words_and_trees_of_other_shapes(soup, tmp_path):
    opened = SoupOfExperts.open(soup)
    for content in (*JSON.values(), b'[["a"], "b"]', b"[[1]]", b'{"a": ["b"]}'):
        (soup / DOMAIN_WORDS).write_bytes(content)
        if content != b"[]":
            with pytest.raises(ValueError, match=DOMAIN_WORDS):
                SoupOfExperts.open(soup).domain_words  # noqa: B018
    (soup / "tree.arrow").write_bytes(
        (make_store(tmp_path / "o", [9] * 3) / "domains/tree.arrow").read_bytes()
    )
    with pytest.raises(StoreError, match=f"tree.arrow has 3 domains; the soup has {K}"):
        opened.tree  # noqa: B018


def _recipe_file(path, configuration, inputs=None, counts=None):
    inputs = {"soup": "s"} if inputs is None else inputs
    manifest = Manifest(
        kind="specialist", configuration=configuration, inputs=inputs, counts=counts or {}, files=()
    )
    path.write_text(manifest.to_json())
    return path


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_a_recipe_and_a_checkpoint_of_harmful_json(tmp_path, content):
    (tmp_path / "specialist.json").write_bytes(content)
    with pytest.raises(StoreError, match="specialist.json is not a manifest"):
        read_recipe(tmp_path)
    (tmp_path / "checkpoint.json").write_bytes(content)
    assert not is_whole(tmp_path)
    (tmp_path / SNAPSHOT).write_bytes(content)
    assert "made anew from the whole checkpoints: none" in mend(tmp_path)


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"coefficients": "123", "domain_weights": None},
        {"coefficients": {"1": 2}, "domain_weights": None},
        {"coefficients": [1, "2"], "domain_weights": None},
        {"coefficients": [1, True], "domain_weights": None},
        {"coefficients": [1, None], "domain_weights": None},
        {"coefficients": [10**400], "domain_weights": None},
        {"coefficients": [1e300], "domain_weights": None},
        {"coefficients": [1], "domain_weights": [1]},
        {"coefficients": [1], "domain_weights": {"-1": 1}},
        {"coefficients": [1], "domain_weights": {"1": 0.5, "01": 0.5}},
        {"coefficients": [1], "domain_weights": {"²": 1}},
        {"coefficients": [1], "domain_weights": {"1": -1}},
        {"coefficients": [1], "domain_weights": {"1": 7}},
        {"coefficients": [1], "domain_weights": {"1": "1"}},
    ],
)
def test_a_recipe_that_is_none(tmp_path, monkeypatch, configuration):
    path = _recipe_file(tmp_path / "odd.json", configuration)
    with pytest.raises(ValueError, match="odd.json: .*holds no recipe"):
        read_recipe(path)
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    (tmp_path / "served/soup").mkdir(parents=True)
    _recipe_file(tmp_path / "served/soup/0123456789abcdef.json", configuration)
    assert RecipeBox("s", "soup").ids() == []


def test_a_recipe_names_a_domain_of_its_soup(soup):
    opened = SoupOfExperts.open(soup)
    recipe = make_recipe(opened, coefficients_N=torch.ones(4), domain_weights_K=torch.eye(K)[0], how={})
    configuration = recipe.configuration() | {"domain_weights": {"99999999999999999999": 1.0}}
    read = read_recipe(_recipe_file(soup / "r.json", configuration, {"soup": opened.digest}))
    with pytest.raises(ValueError, match="domain 99999999999999999999; the soup has"):
        check_recipe(read, opened)
