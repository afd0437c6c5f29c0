"""Soups on disk and the specialists made from them: plain transformers loads what the soup computes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from soe_model.evaluation import mean_loss
from soe_model.flat import unflatten
from soe_model.soup import SoupOfExperts, expert_file, write_soup
from soe_model.specialization import write_specialists
from storage_schema.manifest import StoreError, open_stage
from storage_schema.tree import Tree
from tests.soe_model.test_training import BACKBONE, K, make_batch, make_trainer
from tests.toy_store import make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained soup on disk, with its trainer."""
    folder = tmp_path_factory.mktemp("soup")
    store = make_store(folder / "store", [40] * K)
    trainer = make_trainer()
    for number in range(5):
        trainer.train_step(*make_batch(number))
    stage = open_stage(
        folder / "soup",
        kind="soup",
        configuration={
            "soup": {
                "backbone": BACKBONE,
                "num_experts": 4,
                "num_domains": K,
                "router_hidden": 6,
                "expert_std": 0.05,
            }
        },
        inputs={},
    )
    write_soup(
        stage.work,
        trainer,
        tree=Tree.read(store / "domains/tree.arrow"),
        tokenizer=store / "tokenizer/tokenizer.json",
    )
    stage.finish({})
    return folder / "soup", trainer


WEIGHTS = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.25, 0.25, 0.5]])


def test_an_opened_soup_makes_the_trainers_instances(made):
    folder, trainer = made
    soup = SoupOfExperts.open(folder)
    expected = trainer.bank.instances(trainer.router.module(WEIGHTS).detach())
    torch.testing.assert_close(soup.instances(soup.coefficients(WEIGHTS)), expected, rtol=1e-5, atol=1e-6)


def test_experts_nobody_uses_are_not_read(made, monkeypatch):
    soup = SoupOfExperts.open(made[0])
    read = []
    original = soup._read
    monkeypatch.setattr(soup, "_read", lambda name: read.append(name) or original(name))
    soup.instances(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
    assert read == ["shared.safetensors", expert_file(1), expert_file(3)]


def test_plain_transformers_gives_the_soups_logits(made, tmp_path):
    folder, trainer = made
    soup = SoupOfExperts.open(folder)
    folders = [tmp_path / "a", tmp_path / "b"]
    manifests = write_specialists(soup, folders, WEIGHTS, recipes=[{"rule": "flat"}, {"rule": "tree"}])
    tokens = make_batch(0)[0][:, :-1]
    for place, weights, manifest in zip(folders, WEIGHTS, manifests, strict=True):
        model = AutoModelForCausalLM.from_pretrained(place)
        instance = trainer.bank.instances(trainer.router.module(weights[None]).detach())[0]
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


def test_a_target_that_holds_another_specialist_is_refused(made, tmp_path):
    soup = SoupOfExperts.open(made[0])
    write_specialists(soup, [tmp_path / "a"], WEIGHTS[:1], recipes=[{}])
    write_specialists(soup, [tmp_path / "a"], WEIGHTS[:1], recipes=[{}])  # the same one is a skip
    with pytest.raises(StoreError, match="built with other settings: coefficients"):
        write_specialists(soup, [tmp_path / "a"], WEIGHTS[1:], recipes=[{}])


def test_wrong_weights_and_coefficients_are_refused(made):
    soup = SoupOfExperts.open(made[0])
    with pytest.raises(ValueError, match="3 domain weights for a soup of 5 domains"):
        soup.coefficients(torch.ones(1, 3))
    with pytest.raises(ValueError, match="expected 4 finite coefficients"):
        soup.instances(torch.tensor([[0.0, float("nan"), 0.0, 0.0]]))


def test_an_altered_expert_is_named(made, tmp_path):
    import shutil

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
