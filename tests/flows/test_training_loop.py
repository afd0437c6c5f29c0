"""What ends a run for good, and what only ends a group of workers."""

from types import SimpleNamespace

import pytest
import ray.train

from flows.jobs import endings, training_loop


@pytest.mark.parametrize(("world_size", "ends"), [(1, True), (2, False)])
def test_a_rank_whose_group_was_taken_down_does_not_end_the_run(tmp_path, monkeypatch, world_size, ends):
    """torch raises a ValueError there, as settings that do not fit do. (With one rank there is no group to lose.)"""

    def fails(_):
        raise ValueError("Default process group has not been initialized")

    context = SimpleNamespace(get_world_size=lambda: world_size, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(training_loop, "_train", fails)
    with pytest.raises(ValueError, match="process group"):
        training_loop.train_loop({"run_folder": str(tmp_path)})
    assert (endings.stopped(tmp_path) is not None) == ends
