"""What a pretraining run makes of its settings, and which it refuses before anything starts."""

from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from flows.jobs import pretrain_soe
from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from pipeline.mixtures.ratios import write_fixed
from soe_model.presets import Preset, TrainingConfig, preset
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from tests.flows.jobs.pretraining import SETTINGS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'; there are tiny"),
        ({"store": "nowhere"}, "no domains at"),
        ({"num_workers": 3}, "batch_size 8 is not a multiple of the 3 workers"),
        ({"support_size": 4}, "between 1 and the 3 domains"),
        (
            {"meta_distribution": "recorded", "support_size": None},
            "=recorded reads its mixtures from a table",
        ),
        ({"meta_distribution": "fixed", "support_size": None}, "=fixed reads its mixtures from a table"),
        (
            {"ratios": "x.csv"},
            "ratios is 'x.csv', which meta_distribution=sparse does not use.*recorded or fixed",
        ),
        (
            {"concentration": 2.0},
            "concentration is 2.0, which .*=sparse does not use.*meta_distribution dirichlet",
        ),
        (
            {"meta_distribution": "uniform"},
            "support_size is 2, which meta_distribution=uniform does not use",
        ),
        ({"method": "generic", "ratios": "x.csv"}, "trains one model on one mixture, and ratios is 'x.csv'"),
        (
            {"meta_distribution": "recorded", "ratios": "/no/x.csv", "support_size": None},
            "/no/x.csv is no table of mixtures",
        ),
        ({"mixtures_per_step": 3}, "batch_size 8 is not a multiple of mixtures_per_step 3"),
        ({"warmup_steps": None}, "warmup_steps is 300 and the run has 60 steps.*Give warmup_steps=20"),
        ({"name": "some/bad"}, "name is 'some/bad', which is a path.*without a slash.*SOE_HOME"),
        ({"num_workers": 4, "use_gpu": True}, "4 workers need 4 GPUs; the Ray cluster has 0"),
    ],
)
def test_impossible_settings_are_refused_before_anything_starts(home, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain_soe.run(Pretrain(**{"name": "bad"} | SETTINGS | change))
    assert not (home / "runs" / "bad").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_workers": 3, "num_workers": 2}, "min_workers is 3 and num_workers, the maximum, is 2"),
        ({"min_workers": 1, "num_workers": 3}, "batch_size 8 is not a multiple of the 3 workers"),
        ({"backbone": {"hidden_size": 8}}, "a backbone needs a model_type"),
        ({"backbone": {"model_type": "nonsense"}}, "nonsense"),
        ({"backbone": {"model_type": "llama", "vocab_size": 7}}, "backbone has vocab_size 7; the store's"),
        (
            {"backbone": {"model_type": "gpt2", "n_positions": 8}},
            "backbone has n_positions 8; sequence_length is 16",
        ),
        (
            {"backbone": {"model_type": "llama", "max_position_embeddings": 8}},
            "backbone has max_position_embeddings 8; sequence_length is 16",
        ),
        (
            {"backbone": {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 3}},
            "refuses the backbone",
        ),
        ({"backbone": {"model_type": "vit"}}, "'vit', which is no causal language model"),
        (
            {"backbone": {"model_type": "gpt2", "n_embd": 32, "n_head": 3}},
            "transformers cannot build.*'gpt2'",
        ),
        (
            {"backbone": {"model_type": "gpt2", "eos_token_id": [0, 1]}},
            r"eos_token_id \[0, 1\]; it must be one of the store's \d+ tokens",
        ),
        ({"backbone": {"model_type": "gpt2", "bos_token_id": None}}, "bos_token_id None; it must be one"),
        ({"backbone": {"model_type": "gpt2", "eos_token_id": 99999}}, "eos_token_id 99999; it must be one"),
        ({"backbone": {"model_type": "gpt2", "resid_pdrop": 0.1}}, "resid_pdrop 0.1: a resumed run"),
        ({"optimizer": "magic"}, "magic"),
        ({"method": "generic", "train_generic": True}, "train_generic is for soups"),
    ],
)
def test_impossible_workers_and_backbones_are_refused(home, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain_soe.run(Pretrain(name="bad", **SETTINGS | change))
    assert not (home / "runs" / "bad").exists()


def test_every_number_of_a_preset_is_a_setting(home):
    numbers = dict(
        steps=30, batch_size=6, sequence_length=8, mixtures_per_step=3, support_size=1, learning_rate=0.1,
        expert_learning_rate=0.2, router_learning_rate=0.3, warmup_steps=5, final_learning_rate_fraction=0.4,
        gradient_clip=0.5,
    )  # fmt: skip
    at_start = dict(
        router_hidden=7, router_input_scale=0.6, router_output_scale=0.7, expert_std=0.8, num_experts=2
    )
    adam = dict(beta1=0.5, beta2=0.6, epsilon=1e-4)
    store = DomainStore(home / "stores" / "toy")
    run = run_plan.resolve(Pretrain(store="toy", **numbers, **at_start, **adam), store)
    soup, training = run.soup, run.training
    assert {name: getattr(training, name) for name in numbers} == numbers
    assert {name: getattr(soup, name) for name in at_start} == at_start
    assert asdict(training.adam) == adam
    of_preset = {field.name for field in fields(Preset)} | {field.name for field in fields(TrainingConfig)}
    carried_out = {"optimizer", "micro_batch_size", "compile_model", "deterministic", "seed", "train_generic"}
    others = {
        "shape",
        "training",
        "generic_learning_rate",
        "adam",
    }  # backbone, all of these, learning_rate, its three
    assert of_preset - carried_out - others == numbers.keys() | at_start.keys()
    for name, value in [("learning_rate", "Infinity"), ("beta2", 1.0), ("warmup_steps", -1), ("epsilon", 0)]:
        with pytest.raises(ValueError, match=name):
            Pretrain(**{name: value})


def test_with_more_experts_than_the_preset_has_the_coefficients_start_smaller(home):
    store = DomainStore(home / "stores" / "toy")
    run = run_plan.resolve(Pretrain(store="toy", preset="tiny", num_experts=64), store)
    assert run.soup.router_output_scale == preset("tiny").router_output_scale / 4
    twin = run_plan.resolve(Pretrain(store="toy", preset="tiny", method="generic"), store)
    assert twin.soup.router_output_scale == preset("tiny").router_output_scale


@pytest.mark.parametrize("law", ["uniform", "dirichlet"])
def test_other_laws_of_mixtures(home, law):
    settings = Pretrain(
        name="x", **{k: v for k, v in SETTINGS.items() if k != "support_size"}, meta_distribution=law
    )
    store = DomainStore(home / "stores" / "toy")
    plan = run_plan.make_stream(settings, store, run_plan.resolve(settings, store).training).plan
    assert (plan.steps(0, 9).support_TWs == [0, 2, 3]).all()  # domain 1 is empty


@pytest.mark.parametrize("method", ["soup", "generic"])
def test_a_fixed_mixture_is_that_of_a_table(home, tmp_path, method):
    """With method=generic it is CRISP: one model for one set of texts."""
    write_fixed(np.array([0.25, 0, 0, 0.75]), tmp_path / "h.csv", run="notes")
    asked = {k: v for k, v in SETTINGS.items() if k != "support_size"}
    settings = Pretrain(
        name="x", method=method, meta_distribution="fixed", ratios=str(tmp_path / "h.csv"), **asked
    )
    store = DomainStore(home / "stores" / "toy")
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    plan = run_plan.make_stream(settings, store, training).plan
    assert plan.steps(5, 6).domain_weights(5, 4).tolist() == [[0.25, 0, 0, 0.75]] * training.mixtures_per_step
    assert (soup.num_experts == 0) == (method == "generic")


def test_the_generic_twin_has_one_mixture_and_no_expert(home):
    settings = Pretrain(name="twin", method="generic", **SETTINGS)
    run = run_plan.resolve(settings, DomainStore(home / "stores" / "toy"))
    soup, training = run.soup, run.training
    plan = run_plan.make_stream(settings, DomainStore(home / "stores" / "toy"), training).plan
    assert soup.num_experts == 0 and training.mixtures_per_step == 1
    assert plan.meta_distribution.weights_K.tolist() == pytest.approx([24 / 98, 0, 18 / 98, 56 / 98])


def test_any_hugging_face_architecture(home, tmp_path):
    """A Llama with grouped queries and low-rank experts, from settings to a soup."""
    llama = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    store = DomainStore(home / "stores" / "toy")
    settings = Pretrain(
        name="llama", backbone=llama, expert_rank=2, **SETTINGS | {"steps": 12, "warmup_steps": 2}
    )
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    filled = {
        "vocab_size": store.vocab_size,
        "max_position_embeddings": 16,
        "eos_token_id": store.end_of_text,
    }
    assert filled.items() <= soup.backbone.items() and soup.backbone["attention_dropout"] == 0
    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    found = []
    for batch in run_plan.make_stream(settings, store, training).in_process(0, 12):
        found.append(
            trainer.train_step(
                torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
                torch.from_numpy(batch.mixture_B),
                torch.from_numpy(batch.domain_weights_WK),
            ).loss
        )
    assert found[-1] < found[0]


def test_how_a_run_is_carried_out_is_not_what_it_is(home):
    """After a run ran out of memory, the same name goes on with smaller passes."""
    store = DomainStore(home / "stores" / "toy")
    whole, split = (
        run_plan.resolve(Pretrain(name="x", micro_batch_size=size, **SETTINGS), store).training
        for size in (None, 1)
    )
    assert whole != split and pretrain_soe._identity(whole) == pretrain_soe._identity(split)
    assert pretrain_soe._identity(whole)["optimizer"] == "adam"
