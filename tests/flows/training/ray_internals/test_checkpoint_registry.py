"""Ray's list of a run's checkpoints is made anew where Ray could not start from it, and only there."""

import json
import os
import shutil

import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from flows.training.ray_internals.checkpoint_registry import SNAPSHOT, mend
from soe_model.training.checkpoint import save_checkpoint
from tests.soe_model.training.test_trainer import make_batch, make_trainer

NAMES = ["step-000000001", "step-000000002", "step-000000002-2"]


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, in a list that Ray itself would have written."""
    trainer = make_trainer()
    for name, steps in zip(NAMES, (1, 1, 0), strict=True):
        for _ in range(steps):
            trainer.train_step(*make_batch(trainer.step))
        save_checkpoint(tmp_path / name, trainer, plan_digest="p", notes={})
    (tmp_path / SNAPSHOT).write_text("{")
    assert mend(tmp_path)
    return tmp_path


def listed(run):
    state = _CheckpointManagerState.parse_obj(json.loads((run / SNAPSHOT).read_text()))
    names = [result.checkpoint_dir_name for result in state.checkpoint_results]
    assert state.latest_checkpoint_result == (state.checkpoint_results[-1] if names else None)
    assert state.checkpoint_report_indices == list(range(state.current_report_index))
    return names


def test_a_list_that_ray_can_read_is_left_alone(run):
    before = (run / SNAPSHOT).read_bytes()
    assert listed(run) == NAMES and mend(run) is None
    assert (run / SNAPSHOT).read_bytes() == before


def test_a_run_without_checkpoints_has_no_list(tmp_path):
    assert mend(tmp_path) is None and not (tmp_path / SNAPSHOT).exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"ray_version": "2.60.0", "checkpoint_results": [{'])
def test_half_a_list_is_made_anew(run, content):
    (run / SNAPSHOT).write_text(content)
    assert "was cut off while it was written" in mend(run)
    assert listed(run) == NAMES and mend(run) is None


def test_what_is_gone_or_half_written_is_not_listed(run):
    shutil.rmtree(run / NAMES[2])
    (run / NAMES[1] / "checkpoint.json").unlink()
    assert f"names checkpoints that are gone ({NAMES[2]})" in mend(run)
    assert listed(run) == NAMES[:1]
    rank = next((run / NAMES[0]).glob("rank-*.safetensors"))
    rank.write_bytes(rank.read_bytes()[:-1])
    (run / SNAPSHOT).write_text("")
    assert mend(run).endswith("from the whole checkpoints: none.") and listed(run) == []


def test_another_rays_list_is_made_anew(run):
    state = json.loads((run / SNAPSHOT).read_text()) | {"ray_version": "2.59.1"}
    (run / SNAPSHOT).write_text(json.dumps(state))
    assert "was written by Ray 2.59.1" in mend(run) and listed(run) == NAMES


def test_a_list_of_checkpoints_elsewhere_is_made_anew(tmp_path):
    import ray

    (tmp_path / "secret").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    for name in ("../secret", str(tmp_path / "secret"), ".", 7, None):
        listed = {"ray_version": ray.__version__, "checkpoint_results": [{"checkpoint_dir_name": name}]}
        (run / SNAPSHOT).write_text(json.dumps(listed))
        assert f"names what is no checkpoint of this run ({str(name)!r})" in mend(run)
    assert os.listdir(run) == [SNAPSHOT]
