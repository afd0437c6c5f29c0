"""Checkpoints that mean harm: one error that names the file, and the trainer is untouched."""

import json

import pytest
import torch
from safetensors.torch import save_file

from soe_model.training.checkpoint import load_checkpoint, save_checkpoint
from soe_model.training.checkpoint_files import DamagedCheckpoint, is_whole
from storage_schema.manifest import (
    content_digest,
    file_digest,
)
from tests.soe_model.training.test_trainer import make_trainer


def _forge(folder, **changes):
    state = json.loads((folder / "checkpoint.json").read_text()) | changes
    state.pop("digest")
    (folder / "checkpoint.json").write_text(json.dumps(state | {"digest": content_digest(state)}))


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": 1.5}, {"world_size": 0}, {"world_size": 10**9}, {"world_size": "../x"}, {"notes": 7},
     {"soup": None}, {"training": []}, {"plan_digest": 7}],
)  # fmt: skip
def test_a_checkpoint_of_impossible_numbers(tmp_path, change):
    save_checkpoint(tmp_path, make_trainer(), plan_digest="p", notes={})
    _forge(tmp_path, **change)
    with pytest.raises(DamagedCheckpoint, match="checkpoint.json was altered"):
        load_checkpoint(tmp_path, make_trainer(), plan_digest="p")
    assert not is_whole(tmp_path)


def test_a_checkpoint_whose_tensors_are_others_touches_nothing(tmp_path):
    trainer = make_trainer()
    save_checkpoint(tmp_path, trainer, plan_digest="p", notes={})
    path = tmp_path / "rank-00000-of-00001.safetensors"
    tensors = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    last = list(tensors)[-1]
    other = make_trainer(seed=9)
    before = {name: tensor.clone() for name, tensor in other.tensors().items()}
    for content in ({**tensors, last: torch.zeros(1, 3)}, {n: t for n, t in tensors.items() if n != last}):
        save_file(content, path)
        entry = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        path.with_suffix(".json").write_text(json.dumps(entry))
        with pytest.raises(DamagedCheckpoint, match="rank-00000-of-00001.safetensors"):
            load_checkpoint(tmp_path, other, plan_digest="p")
        assert all(torch.equal(before[name], tensor) for name, tensor in other.tensors().items())
