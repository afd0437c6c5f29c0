"""Checkpoints of a newer release are refused with its name; those of the first, which named none, are read."""

import json

import pytest

from soe_model.training.checkpoint import load_checkpoint, save_checkpoint
from soe_model.training.checkpoint_files import DamagedCheckpoint, is_whole
from storage_schema.manifest import StoreError, content_digest
from storage_schema.versions import WRITTEN_BY
from tests.soe_model.training.test_trainer import make_trainer


def rewrite(folder, change):
    path = folder / "checkpoint.json"
    state = json.loads(path.read_text())
    del state["digest"]
    change(state)
    path.write_text(json.dumps(state | {"digest": content_digest(state)}))
    return path


def test_a_newer_checkpoint_is_refused_not_passed_over(tmp_path):
    trainer = make_trainer()
    save_checkpoint(tmp_path, trainer, plan_digest="p", notes={})
    path = rewrite(tmp_path, lambda state: state.update(schema_version=2, written_by="soup-of-experts 7.2.0"))
    for read in (is_whole, lambda folder: load_checkpoint(folder, trainer, plan_digest="p")):
        with pytest.raises(StoreError, match="written by 'soup-of-experts 7.2.0'.*Install") as refused:
            read(tmp_path)
        assert not isinstance(refused.value, DamagedCheckpoint) and str(path) in str(refused.value)


def test_a_checkpoint_says_who_wrote_it_and_is_read_without(tmp_path):
    trainer = make_trainer()
    save_checkpoint(tmp_path, trainer, plan_digest="p", notes={"n": 1})
    path = rewrite(tmp_path, lambda state: None)
    assert json.loads(path.read_text())["written_by"] == WRITTEN_BY
    rewrite(tmp_path, lambda state: state.pop("written_by"))
    assert is_whole(tmp_path) and load_checkpoint(tmp_path, trainer, plan_digest="p") == {"n": 1}
