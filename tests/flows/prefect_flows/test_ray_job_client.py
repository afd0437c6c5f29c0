"""Submitting and stopping a job, with a cluster played by the test; connecting, with real ones that refuse."""

from __future__ import annotations

import json
import shlex
import socket

import pytest

from flows.local_stack import processes
from flows.prefect_flows import ray_job_client as ray_job
from flows.prefect_flows.ray_job_client import JobError
from tests.flows.prefect_flows.played_cluster import Ailing, Cluster


@pytest.fixture()
def impatient(monkeypatch):
    monkeypatch.setattr(ray_job, "ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(ray_job, "LOST_SECONDS", 0.5)


def test_a_second_job_is_never_submitted_while_the_cluster_does_not_say(impatient):
    assert ray_job.still_running(Ailing(ails={1, 2, 3}), ["mine"]) == "mine"
    with pytest.raises(JobError, match="mine is lost, and may still be running"):
        ray_job.still_running(Ailing(ails=range(10_000)), ["mine"])


@pytest.mark.parametrize("error", [ConnectionError("cut off"), RuntimeError("status code 504")])
def test_a_job_whose_submission_lost_its_answer_is_there_all_the_same(impatient, error):
    class Deaf(Cluster):
        def submit_job(self, **arguments):
            raise error

    job = dict(module="m", config_json="{}", metadata={})
    ray_job.submit(Deaf(), job_id="taken", **job)
    with pytest.raises(JobError, match=f"did not take the job unknown: {error}"):
        ray_job.submit(Deaf(), job_id="unknown", **job)


def test_a_dashboard_that_never_answers_is_not_waited_for_without_end(monkeypatch, impatient):
    """Ray's own client sets no time-out: with a dashboard that hangs, a flow hung too."""
    monkeypatch.setattr(ray_job, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(JobError, match="no Ray cluster answers"):
            ray_job.connect()


def test_a_job_that_cannot_be_stopped_is_not_said_to_be(impatient):
    with pytest.raises(JobError, match="job was not stopped within 0 s .*503.*ray job stop job"):
        ray_job.stop(Ailing(ails=range(10_000)), "job", patience=0.1)


def test_stop_asks_until_the_job_has_ended():
    cluster = Cluster()
    assert ray_job.stop(cluster, "job") and cluster.stops == 2
    assert not ray_job.stop(cluster, "job") and not ray_job.stop(cluster, "unknown")


def test_a_job_of_an_earlier_attempt_is_found_again():
    cluster = Cluster()
    assert ray_job.still_running(cluster, ["unknown", "build-domains-x-1"]) == "build-domains-x-1"
    cluster.status = "FAILED"
    assert ray_job.still_running(cluster, ["unknown", "build-domains-x-1"]) is None


def test_the_settings_reach_the_job_through_the_shell(monkeypatch):
    monkeypatch.setenv("SOE_HOME", "/data/soe")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cluster, config = Cluster(), json.dumps({"corpus": "/it's here; $HOME"})
    ray_job.submit(cluster, job_id="j", module="flows.jobs.x", config_json=config, metadata={"a": "b"})
    sent = cluster.submitted[0]
    assert shlex.split(sent["entrypoint"]) == ["python", "-m", "flows.jobs.x", "--config", config]
    assert sent["runtime_env"] == {"env_vars": {"SOE_HOME": "/data/soe", "SOE_PROGRESS": "json"}}
    assert sent["submission_id"] == "j" and sent["metadata"] == {"a": "b"}


def test_resources_of_living_nodes_are_summed():
    alive, dead = ("ALIVE", {"CPU": 4.0, "GPU": 1.0}), ("DEAD", {"CPU": 64.0, "GPU": 8.0})
    cluster = Cluster(nodes=[alive, alive, dead])
    ray_job.check_resources(cluster, cpus=8, gpus=2)
    with pytest.raises(JobError, match="3 GPUs are asked for and the Ray cluster has 2.*use_gpu=false"):
        ray_job.check_resources(cluster, gpus=3)
    with pytest.raises(JobError, match="9 CPUs are asked for and the Ray cluster has 8"):
        ray_job.check_resources(cluster, cpus=9)


def test_no_cluster_is_an_error_that_names_the_address(monkeypatch):
    address = f"http://127.0.0.1:{processes.free_port()}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(JobError, match=f"no Ray cluster answers at {address}.*soe up"):
        ray_job.connect()


def test_a_wrong_token_is_an_error_that_says_so(running):
    code = "from flows.prefect_flows import ray_job_client as r\ntry: r.connect()\nexcept r.JobError as e: print(e)"
    done = running.run(
        "python",
        "-c",
        code,
        RAY_API_SERVER_ADDRESS=running.stack().dashboard_url,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="0" * 64,
    )
    assert "refuses our token" in done.stdout and "RAY_AUTH_TOKEN_PATH" in done.stdout, done.stderr
