"""Ray tasks: what ends the wait for them ends them too."""

from __future__ import annotations

import time

import pytest
import ray

from pipeline.tasks import cancel, free_cores, run_tasks, share


def test_an_interrupt_cancels_the_others(ray_cluster, tmp_path):
    def work(folder, number):
        (folder / f"begun-{number}").touch()
        if number:
            time.sleep(20)
            (folder / f"ended-{number}").touch()

    def interrupted(done, total):
        while len(list(tmp_path.glob("begun-*"))) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(work, [(tmp_path, number) for number in range(4)], report=interrupted)
    while ray.available_resources().get("CPU") != 4:
        assert time.monotonic() - before < 30
        time.sleep(0.05)
    assert not list(tmp_path.glob("ended-*"))


def test_a_lost_cancellation_is_sent_again(ray_cluster, tmp_path, monkeypatch):
    """As ray-project/ray#24359 loses one: the first of each task does nothing."""
    real, asked = ray.cancel, set()

    def lose_the_first(reference, **options):
        if reference in asked:
            real(reference, **options)
        asked.add(reference)

    def work(file):
        file.touch()
        time.sleep(20)

    monkeypatch.setattr(ray, "cancel", lose_the_first)
    task = ray.remote(work).remote(tmp_path / "begun")
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    cancel([task])
    with pytest.raises(ray.exceptions.RayError):
        ray.get(task, timeout=0)


def test_what_is_shared_arrives_as_itself(ray_cluster):
    assert run_tasks(lambda numbers: max(numbers), [(share([1, 3]),), (share([2]),)]) == [3, 2]


def test_a_task_reserves_no_more_than_is_free(ray_cluster):
    everything = ray.remote(lambda: time.sleep(1)).options(num_cpus=4).remote()
    while ray.available_resources().get("CPU", 0):
        time.sleep(0.01)
    assert free_cores() == 1
    ray.get(everything)


def test_no_more_than_the_limit_run_at_once(ray_cluster, tmp_path):
    def work(number):
        (tmp_path / f"{number}").touch()
        together = len(list(tmp_path.iterdir()))
        time.sleep(0.2)
        (tmp_path / f"{number}").unlink()
        return together

    assert max(run_tasks(work, [(number,) for number in range(4)], limit=1)) == 1
