"""A resumed run is the uninterrupted one; a checkpoint of other data or another model is refused."""

import builtins
import errno
import os
from pathlib import Path

import pytest
import torch

from soe_model.model import sharding
from soe_model.optimizers import AdamConfig
from soe_model.training import checkpoint
from soe_model.training import trainer as training
from soe_model.training.checkpoint import load_checkpoint, save_checkpoint
from soe_model.training.checkpoint_files import DamagedCheckpoint, is_whole
from storage_schema.manifest import StoreError, UnavailableError
from tests.soe_model.training.test_trainer import make_batch, make_trainer

KINDS = {
    "adam": {},
    "adam-bf16-moments": {"optimizer": "adam-bf16-moments"},
    "factored-int8": {"optimizer": "factored-int8"},
    "low-rank": {"expert_rank": 2},
}


@pytest.fixture
def as_rank(monkeypatch):
    """Trainers made after ``as_rank(rank, world_size)`` believe to be that rank; they cannot train."""

    def be(rank, world_size):
        for module in (sharding, training):
            monkeypatch.setattr(module, "current_rank", lambda: (rank, world_size))

    return be


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_identical(tmp_path, kind):
    whole = make_trainer(**KINDS[kind])
    expected = [whole.train_step(*make_batch(n)).loss for n in range(6)]
    first = make_trainer(**KINDS[kind])
    found = [first.train_step(*make_batch(n)).loss for n in range(3)]
    save_checkpoint(tmp_path, first, plan_digest="p", notes={"train_seconds": 1.5})
    second = make_trainer(**KINDS[kind])
    for tensor in second.tensors().values():
        tensor.fill_(7)
    _clear_padding(second)
    assert load_checkpoint(tmp_path, second, plan_digest="p") == {"train_seconds": 1.5}
    found += [second.train_step(*make_batch(n)).loss for n in range(3, 6)]
    assert found == expected
    for name, tensor in whole.tensors().items():
        assert torch.equal(second.tensors()[name], tensor), name


def test_tensors_have_their_name_only_once_they_are_on_disk(tmp_path, monkeypatch):
    def power_cut(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / ".rank-00000-of-00001.safetensors.0123456789ab.aside").write_bytes(
        b"by a worker that was killed"
    )
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    assert is_whole(tmp_path) and not list(tmp_path.glob(".*"))


def _clear_padding(trainer):
    """Columns beyond the parameters are zero from the start, and no checkpoint sets them."""
    for name, tensor in trainer.tensors().items():
        if not trainer.is_whole(name) and tensor.shape[-1] == trainer.sharding.width:
            tensor[..., trainer.sharding.columns.stop - trainer.sharding.columns.start :] = 0


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_to_any_number_of_ranks_and_back(tmp_path, as_rank, kind, world_size):
    trainer = make_trainer(**KINDS[kind])
    for number in range(2):
        trainer.train_step(*make_batch(number))
    save_checkpoint(tmp_path / "one", trainer, plan_digest="p", notes={})
    for rank in range(world_size):
        as_rank(rank, world_size)
        share = make_trainer(seed=9, **KINDS[kind])
        load_checkpoint(tmp_path / "one", share, plan_digest="p")
        assert share.step == 2
        columns = share.sharding.columns
        part = share.bank.shared_p[: columns.stop - columns.start]
        assert torch.equal(part, trainer.bank.shared_p[columns])
        save_checkpoint(tmp_path / "several", share, plan_digest="p", notes={})
    as_rank(0, 1)
    other = make_trainer(seed=9, **KINDS[kind])
    load_checkpoint(tmp_path / "several", other, plan_digest="p")
    assert other.tensors().keys() == trainer.tensors().keys()
    for name, tensor in other.tensors().items():
        assert torch.equal(tensor, trainer.tensors()[name]), name
    assert other.train_step(*make_batch(2)) == trainer.train_step(*make_batch(2))


def test_only_rank_0_keeps_what_every_rank_holds_whole(tmp_path, as_rank):
    sizes = []
    for rank in range(2):
        as_rank(rank, 2)
        trainer = make_trainer(expert_rank=2)
        save_checkpoint(tmp_path, trainer, plan_digest="p", notes={})
        sizes.append((tmp_path / f"rank-{rank:05d}-of-00002.safetensors").stat().st_size)
    factors = trainer.bank.tensors()["experts.factors"]
    assert sizes[0] - sizes[1] > 3 * 4 * factors.numel()


def test_a_checkpoint_of_another_store_is_refused(tmp_path):
    trainer = make_trainer()
    save_checkpoint(tmp_path, trainer, plan_digest="a" * 64, notes={})
    with pytest.raises(
        StoreError, match="made with other data: its plan aaaaaaaaaaaa is not this run's bbbb"
    ):
        load_checkpoint(tmp_path, trainer, plan_digest="b" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 5}, "another model: num_experts was 4, now 5"),
        ({"expert_rank": 2}, "another model: expert_rank was None, now 2"),
        ({"optimizer": "factored"}, "another training: optimizer was 'adam', now 'factored'"),
        ({"adam": AdamConfig(beta1=0.8)}, "another training: adam was .*0.9.*, now .*0.8"),
        ({"learning_rate": 2e-2}, "another training: learning_rate was 0.01, now 0.02"),
        ({"expert_learning_rate": 1e-3}, "expert_learning_rate was 0.005, now 0.001"),
        ({"router_learning_rate": 1e-3}, "router_learning_rate was 0.02, now 0.001"),
        ({"steps": 20, "warmup_steps": 2}, "steps was 10, now 20; warmup_steps was 1, now 2"),
        ({"final_learning_rate_fraction": 0.5}, "final_learning_rate_fraction was 1.0, now 0.5"),
        ({"gradient_clip": 1.0}, "gradient_clip was 0.5, now 1.0"),
    ],
)
def test_a_checkpoint_of_another_model_or_training_is_refused(tmp_path, change, message):
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    with pytest.raises(StoreError, match=message) as refused:
        load_checkpoint(tmp_path, make_trainer(**change), plan_digest="p")
    assert not isinstance(refused.value, DamagedCheckpoint)  # an earlier one would be no better


def test_of_an_older_release_only_what_it_wrote_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_TRAINING", ("optimizer",))  # as it was before the rates came
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={"train_seconds": 1.0})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, make_trainer(), plan_digest="p") == {"train_seconds": 1.0}
    with pytest.raises(StoreError, match="optimizer was 'adam', now 'factored'"):
        load_checkpoint(tmp_path, make_trainer(optimizer="factored"), plan_digest="p")


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


RANK = "rank-00000-of-00001"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (f"{RANK}.safetensors", lambda path: path.unlink(), "is missing"),
        (f"{RANK}.safetensors", lambda path: path.write_bytes(path.read_bytes()[:1000]), "has 1000 bytes"),
        (f"{RANK}.safetensors", _flip, "was altered: its sha256"),
        (f"{RANK}.json", lambda path: path.unlink(), "is missing"),
        (f"{RANK}.json", lambda path: path.write_text("{"), "is not JSON"),
        ("checkpoint.json", lambda path: path.unlink(), "is missing"),
        ("checkpoint.json", lambda path: path.write_bytes(b"\xff\xfe"), "is not JSON"),
        (
            "checkpoint.json",
            lambda path: path.write_text(path.read_text().replace('"step": 1', '"step": 3')),
            "was altered",
        ),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_touched(tmp_path, name, damage, message):
    trainer = make_trainer()
    trainer.train_step(*make_batch(0))
    save_checkpoint(tmp_path, trainer, plan_digest="p", notes={})
    damage(tmp_path / name)
    other = make_trainer(seed=9)
    before = other.bank.shared_p.clone()
    with pytest.raises(DamagedCheckpoint, match=f"{name} {message}"):
        load_checkpoint(tmp_path, other, plan_digest="p")
    assert torch.equal(other.bank.shared_p, before) and other.step == 0


def _refused(monkeypatch, owner, function, name, number):
    """`function` raises the system's error of that number for the file of that name."""
    real = getattr(owner, function)

    def refuse(path, *arguments, **options):
        if str(path).endswith(os.sep + name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(owner, function, refuse)


@pytest.mark.parametrize(
    ("number", "passing"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)]
)
@pytest.mark.parametrize("name", ["checkpoint.json", f"{RANK}.json", f"{RANK}.safetensors"])
def test_a_file_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, name, number, passing):
    """Otherwise a run would go back to an earlier checkpoint, for a disk that answers again in a minute."""
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    _refused(monkeypatch, builtins, "open", name, number)
    with pytest.raises(StoreError, match=f"cannot read .*{name}: {os.strerror(number)}") as refused:
        load_checkpoint(tmp_path, make_trainer(), plan_digest="p")
    assert not isinstance(refused.value, DamagedCheckpoint)
    assert isinstance(refused.value, UnavailableError) == passing


def test_a_size_that_cannot_be_asked_for_is_not_a_missing_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    _refused(monkeypatch, Path, "stat", f"{RANK}.safetensors", errno.EIO)
    with pytest.raises(UnavailableError, match=f"cannot read .*{RANK}.safetensors: Input/output error"):
        is_whole(tmp_path)


def test_a_disk_that_fails_while_tensors_are_taken_is_not_damage(tmp_path, monkeypatch):
    """safetensors says of every file it cannot open that it is missing; this one was read just before."""
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})

    def missing(path, *_):
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(checkpoint, "safe_open", missing)
    with pytest.raises(UnavailableError, match=f"cannot read .*{RANK}.safetensors"):
        load_checkpoint(tmp_path, make_trainer(), plan_digest="p")
