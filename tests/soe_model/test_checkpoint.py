"""A resumed run is the uninterrupted one; a checkpoint of other data or another model is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from soe_model.checkpoint import load_checkpoint, save_checkpoint
from soe_model.sharding import Sharding
from storage_schema.manifest import StoreError
from tests.soe_model.test_training import make_batch, make_trainer


def test_resume_is_bit_identical(tmp_path):
    whole = make_trainer()
    expected = [whole.train_step(*make_batch(n)).loss for n in range(6)]
    first = make_trainer()
    found = [first.train_step(*make_batch(n)).loss for n in range(3)]
    save_checkpoint(tmp_path, first, plan_digest="p", notes={"train_seconds": 1.5})
    second = make_trainer(seed=9)  # every tensor differs until it is restored
    assert load_checkpoint(tmp_path, second, plan_digest="p") == {"train_seconds": 1.5}
    found += [second.train_step(*make_batch(n)).loss for n in range(3, 6)]
    assert found == expected
    assert torch.equal(second.bank.experts_Np, whole.bank.experts_Np)


def test_files_of_any_number_of_ranks_can_be_read(tmp_path):
    """Split one rank's checkpoint by hand into three and restore from those."""
    trainer = make_trainer()
    trainer.train_step(*make_batch(0))
    save_checkpoint(tmp_path, trainer, plan_digest="p", notes={})
    path = tmp_path / "rank-00000-of-00001.safetensors"
    tensors = load_file(path)
    path.unlink()
    for rank in range(3):
        sharding = Sharding(num_params=trainer.backbone.num_params, rank=rank, world_size=3)
        save_file(
            {
                name: tensor if name.startswith("router") else sharding.shard(tensor)
                for name, tensor in tensors.items()
            },
            tmp_path / f"rank-{rank:05d}-of-00003.safetensors",
        )
    state = tmp_path / "checkpoint.json"
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 3'))
    other = make_trainer(seed=9)
    load_checkpoint(tmp_path, other, plan_digest="p")
    for name, tensor in other.tensors().items():
        assert torch.equal(tensor, trainer.tensors()[name]), name


def test_a_checkpoint_of_another_store_is_refused(tmp_path):
    trainer = make_trainer()
    save_checkpoint(tmp_path, trainer, plan_digest="a" * 64, notes={})
    with pytest.raises(
        StoreError, match="made with other data: its plan aaaaaaaaaaaa is not this run's bbbb"
    ):
        load_checkpoint(tmp_path, trainer, plan_digest="b" * 64)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    with pytest.raises(StoreError, match="another model: num_experts"):
        load_checkpoint(tmp_path, make_trainer(num_experts=5), plan_digest="p")


def test_a_damaged_checkpoint_is_named(tmp_path):
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    path = tmp_path / "rank-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match="is damaged"):
        load_checkpoint(tmp_path, make_trainer(), plan_digest="p")
