"""Worked cases of the cost model, and the refusal of what cannot fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from soe_model.model.backbone import build_backbone, token_losses
from soe_model.planning.devices import DEVICES, device
from soe_model.planning.memory_check import needed, refuse_what_cannot_fit, share_of_worker
from soe_model.planning.model_size import model_size
from soe_model.planning.setup import Setup
from soe_model.planning.state_size import checkpoint_bytes, experts_bytes, state_bytes
from soe_model.planning.step_time import step_flops, step_time
from soe_model.planning.worker_memory import activation_bytes, worker_memory
from soe_model.presets import SoupConfig, preset
from soe_model.training.trainer import SoupTrainer


@cache
def _backbone_and_size(name, vocab_size):
    training = preset(name).training
    backbone = preset(name).backbone(
        vocab_size=vocab_size, sequence_length=training.sequence_length, end_of_text=0
    )
    return backbone, model_size(backbone)


def make_setup(
    name="paper-110m", *, vocab=32_000, workers=1, kind="cuda", experts=None, rank=None, **training
):
    chosen = preset(name)
    backbone, size = _backbone_and_size(name, vocab)
    soup = SoupConfig(
        backbone=backbone,
        num_experts=chosen.num_experts if experts is None else experts,
        num_domains=64,
        expert_rank=rank,
    )
    return Setup(
        size=size,
        soup=soup,
        training=replace(chosen.training, **training),
        num_workers=workers,
        device_type=kind,
    )


def test_the_papers_model_has_110_million_parameters_and_a_bank_of_14_billion():
    setup = make_setup()
    # 12 layers of 12 h² weights and 13 h biases and norms, 2 h of the last norm, two tables of embeddings.
    expected = 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 32_000 * 768 + 1024 * 768
    assert setup.size.num_params == expected == 110_418_432
    assert setup.size.matmul_params == 12 * 12 * 768**2 + 32_000 * 768
    assert 128 * setup.size.num_params / 1e9 == pytest.approx(14.1, abs=0.05)
    assert step_flops(setup) / 1e12 == pytest.approx(101.0, abs=0.1)


@pytest.mark.parametrize(
    ("optimizer", "gigabytes"), [("adam", 169), ("adam-bf16-moments", 113), ("factored", 85)]
)
def test_the_experts_state_on_one_gpu(optimizer, gigabytes):
    assert experts_bytes(make_setup(optimizer=optimizer)) / 1e9 == pytest.approx(gigabytes, abs=1)


@pytest.mark.parametrize(
    ("optimizer", "ratios"),
    [
        ("adam", (0.74, 0.71, 0.66)),
        ("adam-bf16-moments", (0.81, 0.79, 0.75)),
        ("factored", (0.85, 0.83, 0.80)),
    ],
)
def test_ratios_on_an_h200_at_three_speeds_of_the_backbone(optimizer, ratios):
    for mfu, ratio in zip((0.40, 0.46, 0.57), ratios, strict=True):
        time = step_time(make_setup(optimizer=optimizer), DEVICES["H200"], mfu=mfu)
        assert time.ratio == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(
    ("optimizer", "ratios"),
    [("adam", (0.80, 0.74)), ("adam-bf16-moments", (0.86, 0.82)), ("factored", (0.89, 0.85))],
)
def test_ratios_on_eight_a100(optimizer, ratios):
    for mfu, ratio in zip((0.37, 0.50), ratios, strict=True):
        time = step_time(make_setup(optimizer=optimizer, workers=8), DEVICES["A100-80"], mfu=mfu)
        assert time.ratio == pytest.approx(ratio, abs=0.01)


def test_exact_adam_does_not_fit_one_h200_and_the_nearest_settings_that_do_are_named():
    memory = DEVICES["H200"].memory
    with pytest.raises(ValueError) as refused:
        refuse_what_cannot_fit(make_setup(), memory, of="H200")
    text = str(refused.value)
    ways = text[text.index("Set ") + 4 : -1].split("; or ")
    assert ways[0].startswith("optimizer=adam-bf16-moments micro_batch_size=")
    assert ways[1].startswith("num_workers=2") and ways[2].startswith("num_experts=")
    for way in ways:
        settings = {k: v if k == "optimizer" else int(v) for k, v in (s.split("=") for s in way.split())}
        experts, workers = settings.pop("num_experts", None), settings.pop("num_workers", 1)
        changed = make_setup(experts=experts, workers=workers, **settings)
        refuse_what_cannot_fit(changed, memory, of="H200")
        if experts:
            with pytest.raises(ValueError):
                refuse_what_cannot_fit(make_setup(experts=experts + 1, micro_batch_size=1), memory, of="H200")


def test_a_smaller_micro_batch_is_enough_where_it_is():
    with pytest.raises(ValueError, match=r"Set micro_batch_size=\d+\.$"):
        refuse_what_cannot_fit(make_setup(experts=16), DEVICES["H100"].memory, of="H100")


def test_a_backbone_too_large_alone_is_refused_without_a_way_out():
    with pytest.raises(ValueError, match=r"Nor does it fit with one expert: take a smaller backbone\.$"):
        refuse_what_cannot_fit(make_setup(), 1e9, of="a small GPU")


def test_workers_of_one_machine_share_its_memory():
    setup = make_setup("tiny", kind="cpu", workers=2)
    refuse_what_cannot_fit(setup, 2 * needed(setup), of="this machine", workers_there=2)
    with pytest.raises(ValueError, match="2 workers need") as refused:
        refuse_what_cannot_fit(setup, 2 * needed(setup) - 1, of="this machine", workers_there=2)
    assert "num_workers" not in str(refused.value)
    with pytest.raises(ValueError, match=r"take a smaller backbone, or fewer workers\.$"):
        refuse_what_cannot_fit(setup, needed(setup), of="this machine", workers_there=2)
    with pytest.raises(ValueError, match=r"take a smaller backbone\.$"):
        refuse_what_cannot_fit(setup, needed(setup) / 3, of="this machine", workers_there=2)


def test_a_generic_instance_that_is_trained_too_is_a_second_pass_and_one_more_to_hold():
    setup, more = make_setup(workers=2), make_setup(workers=2, train_generic=True)
    assert step_flops(more) == 2 * step_flops(setup)
    assert [number - 1 for number in more.owned] == setup.owned
    memory, needed_more = worker_memory(setup), worker_memory(more)
    assert needed_more["instances and gradients"] == 2 * memory["instances and gradients"]
    time, longer = (step_time(one, DEVICES["H200"]) for one in (setup, more))
    assert longer.ratio == pytest.approx(time.backbone / (2 * time.backbone + time.bank))


@pytest.mark.parametrize(
    ("mixtures", "workers", "most"), [(1, 8, 1), (8, 8, 1), (8, 2, 4), (3, 2, 2), (6, 4, 2)]
)
def test_a_worker_holds_the_instances_of_its_sequences(mixtures, workers, most):
    setup = make_setup(batch_size=48, mixtures_per_step=mixtures, workers=workers)
    assert max(setup.owned) == most
    held = worker_memory(setup)["instances and gradients"]
    assert held == 2 * 4 * most * workers * setup.width


@pytest.mark.parametrize(
    "settings", [dict(), dict(optimizer="factored-int8"), dict(rank=4), dict(optimizer="adam-bf16-moments")]
)
def test_the_state_is_that_of_a_real_trainer(settings):
    setup = make_setup("tiny", vocab=512, kind="cpu", **settings)
    trainer = SoupTrainer(setup.soup, setup.training)
    held = sum(t.numel() * t.element_size() for t in trainer.tensors().values())
    assert state_bytes(setup) == pytest.approx(held, rel=1e-3)
    assert checkpoint_bytes(setup) == pytest.approx(state_bytes(setup))
    buffers = trainer.backbone.padded_params_WP, trainer.backbone.padded_grads_WP
    instances = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    assert worker_memory(setup)["instances and gradients"] == instances


def test_low_rank_experts_are_whole_on_every_worker_and_once_on_disk():
    one, four = (make_setup("tiny", vocab=512, rank=4, workers=n) for n in (1, 4))
    assert experts_bytes(one) == experts_bytes(four)
    assert checkpoint_bytes(four) == pytest.approx(checkpoint_bytes(one), rel=0.1)
    assert step_time(one, DEVICES["H100"]).bank is None


@pytest.mark.parametrize(("mixtures", "workers", "copies"), [(1, 8, 1), (8, 8, 2), (8, 2, 2)])
def test_low_rank_experts_gather_the_gradients_of_all_instances(mixtures, workers, copies):
    setup = make_setup(rank=8, workers=workers, mixtures_per_step=mixtures)
    gathered = 4 * workers * mixtures * setup.width
    assert worker_memory(setup)["communication"] >= copies * gathered


def test_activations_are_about_what_autograd_keeps():
    setup = make_setup("small", vocab=2048, kind="cpu", micro_batch_size=4)
    model = build_backbone(setup.soup.backbone, seed=0).module
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.zeros(4, 129, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_losses(model, tokens).sum()
    # At the end of the forward pass there is one of the three numbers that a logit costs at the peak.
    gradients = 8 * 2048 * 4 * 128
    assert activation_bytes(setup) - gradients == pytest.approx(
        sum(size for size, _ in kept.values()), rel=0.15
    )


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="H200"):
        device("B7")


@pytest.mark.parametrize(
    ("machines", "workers", "together", "share"),
    [
        ([(12, 4)], 3, True, 4),  # one machine, shared by all
        ([(12, 4), (4, 4)], 3, True, 4),  # two and one, or three and none
        ([(12, 4), (6, 4)], 3, True, 6),
        ([(12, 1), (6, 4)], 3, True, 3),  # one place on the large one: two on the other
        ([(12, 1), (6, 1)], 3, True, None),
        ([(80, 2), (40, 4)], 3, False, 40),  # a GPU each
        ([(80, 2), (40, 4)], 2, False, 80),
    ],
)
def test_the_share_of_a_worker_of_several_machines(machines, workers, together, share):
    assert share_of_worker(machines, workers, together=together) == share
