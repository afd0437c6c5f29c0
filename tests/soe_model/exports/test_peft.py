"""A specialist of a low-rank soup as PEFT loads it: the same logits, and the same tensors once it is merged."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from soe_model.exports.peft import write_peft
from soe_model.files.soup import SoupOfExperts
from soe_model.files.write_soup import soup_of_trainer
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import instance_of, make_recipe
from storage_schema.manifest import StoreError
from storage_schema.tree import Tree
from tests.extras import needs
from tests.soe_model.training.test_trainer import BACKBONE, K, L, make_batch, make_trainer
from tests.toy_store import make_store

RANK = 2
ENDS = {
    "vocab_size": 40,
    "max_position_embeddings": L,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA = ENDS | {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False,
}  # fmt: skip
OPT = ENDS | {
    "model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "dropout": 0.0,
}  # fmt: skip
BACKBONES = {
    "gpt2": BACKBONE,
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_word_embeddings": True},
    "opt": OPT,
}
POSITIONS = "model.decoder.embed_positions.weight"
"""OPT's own layer, which shifts what it is given: nothing that PEFT adapts."""


@pytest.fixture(scope="module", params=BACKBONES)
def low_rank(request, tmp_path_factory):
    """The backbone's name and a trained soup of low rank."""
    root, backbone = tmp_path_factory.mktemp(request.param), BACKBONES[request.param]
    store = make_store(root / "store", [40] * K)
    trainer = make_trainer(expert_rank=RANK, backbone=backbone)
    for number in range(5):
        trainer.train_step(*make_batch(number))
    tree, tokenizer = Tree.read(store / "domains/tree.arrow"), store / "tokenizer/tokenizer.json"
    return request.param, soup_of_trainer(root / "soup", trainer, tree=tree, tokenizer=tokenizer)


def recipe_for(soup, *coefficients):
    return make_recipe(soup, coefficients_N=torch.tensor(coefficients), how={"method": "by hand"})


def loaded(base, adapter):
    """By PEFT, which only warns of tensors that it misses."""
    from peft import PeftModel  # deptry: ignore[DEP004]

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert not [w for w in said if "missing" in str(w.message).lower() or "tie" in str(w.message)]
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=make_batch(0)[0][:, :-1]).logits


def test_peft_gives_the_specialists_logits_and_merges_its_tensors(low_rank, tmp_path):
    needs("peft", extra="exports")
    name, soup = low_rank
    recipe = recipe_for(soup, 0.7, -0.3, 0.0, 1.9)
    adapter = write_peft(soup, recipe, tmp_path / "a")
    configuration = json.loads((adapter / "adapter_config.json").read_text())
    assert configuration["r"] == configuration["lora_alpha"] == 3 * RANK
    base = configuration["base_model_name_or_path"]
    model, instance = loaded(base, adapter), instance_of(recipe, soup)
    expected = logits(soup.model(instance))
    assert (logits(AutoModelForCausalLM.from_pretrained(base)) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    found = dict(merged.named_parameters())
    for key, tensor in unflatten(instance, soup.layout).items():
        torch.testing.assert_close(found.pop(key).detach(), tensor, rtol=0, atol=1e-6)
    assert set(found) <= {"lm_head.weight"}  # equal to the embeddings, as the merged logits are


def test_the_base_is_the_shared_parameters(low_rank, tmp_path):
    """But for what PEFT cannot adapt, which the card names; otherwise any adapter fits any base."""
    name, soup = low_rank
    recipe = recipe_for(soup, 0.0, 1.0, 0.0, 0.5)
    adapter = write_peft(soup, recipe, tmp_path / "a")
    found = load_file(tmp_path / "a/base/model.safetensors")
    shared = unflatten(soup.instances(torch.zeros(1, 4))[0], soup.layout)
    made_of = unflatten(instance_of(recipe, soup), soup.layout)
    for key, tensor in shared.items():
        if key == POSITIONS:
            torch.testing.assert_close(found[key], made_of[key], rtol=0, atol=1e-6)
        else:
            assert torch.equal(found[key], tensor), key
    card = (adapter / "README.md").read_text()
    assert (POSITIONS in card) == (name == "opt") == ("alone" in card)
    if name == "opt":
        return
    needs("peft", extra="exports")
    other = recipe_for(soup, -0.4, 0.0, 0.6, 0.0)
    second = write_peft(soup, other, tmp_path / "b")
    expected = logits(soup.model(instance_of(other, soup)))
    torch.testing.assert_close(logits(loaded(tmp_path / "a/base", second)), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_refused(made, low_rank, tmp_path):
    full, (_, soup) = SoupOfExperts.open(made[0]), low_rank
    with pytest.raises(ValueError, match="experts of full rank"):
        write_peft(full, recipe_for(full, 1.0, 0.0, 0.0, 0.0), tmp_path / "a")
    with pytest.raises(ValueError, match="all 4 coefficients are 0"):
        write_peft(soup, recipe_for(soup, 0.0, 0.0, 0.0, 0.0), tmp_path / "a")
    (tmp_path / "mine").mkdir()
    with pytest.raises(StoreError, match="mine exists"):
        write_peft(soup, recipe_for(soup, 1.0, 0.0, 0.0, 0.0), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
