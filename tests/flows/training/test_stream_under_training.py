"""The global batches of a group of training workers, of which some are killed, are those of the plan."""

import json

import numpy as np
import pytest
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from flows.training.mixture_data import MixtureDataConfig
from tests.mortal_consumer import consume, of_slot
from tests.pipeline.stream.toy_stream import make_stream
from tests.toy_store import make_store


@pytest.mark.faults
def test_global_batches_are_the_plan_s_whoever_is_killed(tmp_path, ray_cluster):
    """Two workers, the second killed in mid-window; then, as after a resize, one, killed too; then two again."""
    stream = make_stream(make_store(tmp_path / "store", [400, 0, 17, 16, 900, 333]), window_steps=7)
    (tmp_path / "logs").mkdir()
    phases = [(2, 0, 30, 17), (1, 30, 45, 41), (2, 45, 60, -1)]
    for phase, (workers, start, stop, dies_after) in enumerate(phases):
        steps = {"start": start, "stop": stop, "dies_after": dies_after}
        TorchTrainer(
            consume,
            train_loop_config=steps | {"folder": str(tmp_path / "logs"), "phase": phase},
            datasets={"train": lambda: stream},
            dataset_config=MixtureDataConfig(),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=f"phase-{phase}",
                storage_path=str(tmp_path / "runs"),
                failure_config=FailureConfig(max_failures=1),
            ),
        ).fit()
    expected = {
        (batch.step, slot): of_slot(batch, slot)
        for batch in make_stream(tmp_path / "store").in_process(0, 60)
        for slot in range(8)
    }
    logs = sorted((tmp_path / "logs").glob("*.jsonl"))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert len(logs) == 4 + 2 + 2  # each killed group came twice
    assert {(step, slot) for step, slot, _ in lines} == expected.keys()
    assert all(expected[step, slot] == found for step, slot, found in lines)
    again = [step for log in logs for step in {json.loads(line)[0] for line in log.read_text().splitlines()}]
    assert np.bincount(again)[10:17].min() >= 4  # done, and done again from the checkpoint in mid-window
