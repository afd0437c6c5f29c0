"""Groups of workers that share the batch evenly."""

import pytest
import ray
from ray.train import ScalingConfig

from flows.training import resolve_run as run_plan
from flows.training.ray_internals.even_scaling import EvenScalingPolicy


@pytest.mark.parametrize(
    ("range_", "sizes"), [((8, 1, 8), [1, 2, 4, 8]), ((12, 2, 6), [2, 3, 4, 6]), ((8, 4, 4), [4])]
)
def test_only_world_sizes_that_share_the_batch_evenly(range_, sizes):
    assert run_plan.world_sizes(*range_) == sizes


def test_a_group_is_as_large_as_the_cluster_allows_but_shares_the_batch_evenly(monkeypatch):
    policy = EvenScalingPolicy(ScalingConfig(num_workers=(2, 8)), allowed=[2, 4, 8])
    of_three_cores = EvenScalingPolicy(
        ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 3}), allowed=[2, 4, 8]
    )

    def possible(cpus, in_all, policy=policy):
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": in_all})
        return policy._count_possible_workers({"node": {"CPU": cpus}})

    assert [possible(cpus, 99) for cpus in (1, 2, 3, 7, 8, 20)] == [0, 2, 2, 4, 8, 8]
    # One CPU of the cluster is left to the data.
    assert [possible(20, in_all) for in_all in (2, 3, 5, 8, 9)] == [0, 2, 4, 4, 8]
    assert [possible(99, in_all, of_three_cores) for in_all in (6, 7, 12, 13)] == [0, 2, 2, 4]
