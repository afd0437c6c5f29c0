"""Soups on disk and the specialists made from them: plain transformers loads what the soup computes."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.specialists.losses import LossMeter
from pipeline.mixtures.meta_distributions import window_shares
from soe_model.files.bank_files import expert_file
from soe_model.files.soup import SoupOfExperts
from soe_model.files.write_soup import write_soup
from soe_model.model.flat_module import unflatten
from soe_model.specialists.evaluation import mean_loss
from storage_schema.manifest import StoreError
from storage_schema.tree import Tree
from tests.soe_model.toy_soup import WEIGHTS, write
from tests.soe_model.training.test_trainer import make_batch


def test_an_opened_soup_makes_the_trainers_instances(made):
    folder, trainer = made
    soup = SoupOfExperts.open(folder)
    expected = trainer.instantiate(WEIGHTS)
    for instance, wanted in zip(soup.instances(soup.coefficients(WEIGHTS)), expected, strict=True):
        found = unflatten(instance, soup.layout)
        for name, tensor in unflatten(wanted, trainer.backbone.layout).items():
            torch.testing.assert_close(found.pop(name), tensor, rtol=1e-5, atol=1e-6)
        assert not found


def test_the_generic_mixture_is_by_windows_as_training_draws(made, tmp_path):
    """By passages only in a soup that has not kept the windows. Damage is named."""
    folder, trainer = made
    windows_K = np.array([30, 0, 20, 25, 25])
    opened = SoupOfExperts.open(folder)
    assert np.array_equal(opened.generic_weights, opened.tree.generic_weights)
    shutil.copytree(folder, tmp_path / "soup")
    tree, tokenizer = tmp_path / "soup/tree.arrow", folder / "tokenizer.json"
    write_soup(tmp_path / "soup", trainer, tree=Tree.read(tree), tokenizer=tokenizer, windows_K=windows_K)
    soup = SoupOfExperts.open(tmp_path / "soup", verify=False)
    expected = window_shares(windows_K)
    assert np.array_equal(soup.generic_weights, expected)
    of_instance = soup.coefficients(torch.from_numpy(expected).float()[None])[0]
    assert torch.equal(LossMeter(soup).generic_N, of_instance)
    for damage in ("[1, 2]", "[0, 0, 0, 0, 0]", "[1, 2, 3, 4, -5]", "[1, 2, 3, 4, 5.5]", "{}"):
        (tmp_path / "soup/domain-windows.json").write_text(damage)
        with pytest.raises(
            StoreError, match="domain-windows.json is not a number of windows for each of the 5"
        ):
            SoupOfExperts.open(tmp_path / "soup", verify=False).generic_weights  # noqa: B018


def test_experts_nobody_uses_are_not_read(made, tmp_path):
    """The experts with a coefficient of 0 are taken away once the soup is open: reading them would fail."""
    shutil.copytree(made[0], tmp_path / "soup")
    soup = SoupOfExperts.open(tmp_path / "soup")
    coefficients = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    expected = soup.instances(coefficients)
    for unused in (0, 2):
        soup.bank.experts[unused].flat_P = None
    assert torch.equal(soup.instances(coefficients), expected)


def test_plain_transformers_gives_the_soups_logits(made, tmp_path):
    folder, trainer = made
    soup = SoupOfExperts.open(folder)
    tokens = make_batch(0)[0][:, :-1]
    for place, weights in zip((tmp_path / "a", tmp_path / "b"), WEIGHTS, strict=True):
        manifest = write(soup, place, weights)
        model = AutoModelForCausalLM.from_pretrained(place)
        instance = trainer.instantiate(weights[None])[0]
        parameters = unflatten(instance, trainer.backbone.layout)
        expected = torch.func.functional_call(
            trainer.backbone.module, parameters, kwargs={"input_ids": tokens}
        ).logits
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=tokens).logits, expected.detach(), rtol=0, atol=1e-5)
        tokenizer = AutoTokenizer.from_pretrained(place)
        assert tokenizer("w3 w5").input_ids == [3, 5] and tokenizer.eos_token_id == 0
        generated = model.generate(torch.tensor([[3]]), max_new_tokens=4, do_sample=False)
        assert generated.shape[1] <= 5 and generated.max() < 40
        assert manifest.inputs == {"soup": soup.digest}
        assert set(manifest.configuration["domain_weights"]) == {
            str(i) for i in weights.nonzero().flatten().tolist()
        }


def test_the_directory_has_what_converters_and_hubs_read(made, tmp_path):
    soup = SoupOfExperts.open(made[0])
    write(soup, tmp_path / "a", report={"losses": {"made": 1.5, "generic_instance": 2.0, "windows": 7}})
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] and config["architectures"] == ["GPT2LMHeadModel"]
    generation = json.loads((tmp_path / "a/generation_config.json").read_text())
    assert generation["eos_token_id"] == generation["pad_token_id"] == 0 < config["vocab_size"]
    card = (tmp_path / "a/README.md").read_text()
    assert card.startswith("---\nbase_model:") and "library_name: transformers" in card
    assert soup.digest in card and "| **this specialist** | 1.5000 |" in card


def test_a_target_that_holds_another_specialist_is_refused(made, tmp_path):
    soup = SoupOfExperts.open(made[0])
    write(soup, tmp_path / "a")
    write(soup, tmp_path / "a")  # the same one is a skip
    with pytest.raises(StoreError, match="built with other settings: coefficients"):
        write(soup, tmp_path / "a", WEIGHTS[1])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine.txt").write_text("precious")
    with pytest.raises(StoreError, match="b exists and holds no specialist"):
        write(soup, tmp_path / "b", replace=True)
    assert (tmp_path / "b/mine.txt").read_text() == "precious"


def test_wrong_weights_and_coefficients_are_refused(made):
    soup = SoupOfExperts.open(made[0])
    for weights, said in (
        ([0.5, 0.5, 0.0], r"have shape \[3\]; give one for each of the soup's 5 domains"),
        ([5.0, -3.0, -1.0, 0.0, 0.0], "domain weight 1 is -3.0; weights must be finite and at least 0"),
        ([0.5, float("nan"), 0.5, 0.0, 0.0], "domain weight 1 is nan"),
        ([0.5, float("inf"), 0.5, 0.0, 0.0], "domain weight 1 is inf"),
        ([0.5, 0.5, 0.5, 0.0, 0.0], "sum to 1.5; they must sum to 1 within 0.0001. Divide them by their sum"),
        ([0.0] * 5, "sum to 0"),
    ):
        with pytest.raises(ValueError, match=said):
            soup.coefficients(torch.tensor([weights] if len(weights) == 5 else weights))
        with pytest.raises(ValueError, match=said.replace("[3", "[1, 3")):
            soup.specialist(torch.tensor(weights))
    with pytest.raises(
        ValueError, match="expected 4 finite coefficients, one for each expert, got nan at expert 1"
    ):
        soup.instances(torch.tensor([[0.0, float("nan"), 0.0, 0.0]]))


def test_an_altered_expert_is_named(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "soup")
    path = tmp_path / "soup" / expert_file(2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="expert-002.safetensors was altered"):
        SoupOfExperts.open(tmp_path / "soup")
    path.unlink()
    with pytest.raises(StoreError, match="expert-002.safetensors is missing"):
        SoupOfExperts.open(tmp_path / "soup")


def test_mean_loss_is_the_mean_over_all_tokens(made):
    trainer = made[1]
    tokens = make_batch(3)[0]
    one_by_one = [mean_loss(trainer.backbone.module, tokens[i : i + 1]) for i in range(len(tokens))]
    whole = mean_loss(trainer.backbone.module, tokens, batch_size=4)
    assert abs(whole - sum(one_by_one) / len(one_by_one)) < 1e-6
    with pytest.raises(ValueError, match="no whole window"):
        mean_loss(trainer.backbone.module, tokens[:0])
