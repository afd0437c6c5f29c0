"""What a flow does around its job, with a cluster and a server played by the test."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from flows.prefect_flows import ray_job_client as ray_job
from flows.prefect_flows import ray_job_log
from flows.prefect_flows import run_ray_job as carry_out
from flows.prefect_flows.pretrain_soe import pretrain_soe
from flows.settings import BuildDomains, Pretrain


@pytest.fixture()
def played(monkeypatch, tmp_path):
    """What was done, in order; the job ends well unless `follow` is replaced."""
    done: list[str] = []
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    monkeypatch.setattr(carry_out, "get_run_logger", lambda: logging.getLogger("played"))
    monkeypatch.setattr(carry_out, "flow_run", SimpleNamespace(id="run", run_count=1))
    monkeypatch.setattr(carry_out, "deployment", SimpleNamespace(name="d"))
    shown = SimpleNamespace(update=lambda progress: None, close=lambda: done.append("close"))
    monkeypatch.setattr(carry_out, "ProgressArtifacts", lambda *a, **k: done.append("show") or shown)
    for name, value in dict(
        connect="cluster",
        check_resources=None,
        still_running=None,
        submit=None,
        stop=True,
    ).items():
        monkeypatch.setattr(ray_job, name, lambda *a, name=name, value=value, **k: done.append(name) or value)
    monkeypatch.setattr(ray_job_log, "follow", lambda *a, **k: done.append("follow") or {"rows": 3})
    return done


def run():
    return carry_out.run_ray_job("build-domains", BuildDomains(), module="m", publish=lambda: None)


def raising(error):
    def call(*arguments, **named):
        raise error

    return call


def test_a_job_is_followed_and_its_summary_returned(played):
    assert run() == {"rows": 3}
    assert played == ["show", "connect", "check_resources", "still_running", "submit", "follow", "close"]


def test_what_the_form_gives_by_default_is_not_taken_for_chosen(played, monkeypatch):
    sent = {}
    monkeypatch.setattr(ray_job, "submit", lambda *a, **k: sent.update(k))
    form = Pretrain(**Pretrain(name="mine", steps=7).model_dump())
    assert form.model_fields_set == set(Pretrain.model_fields)
    carry_out.run_ray_job("pretrain-soe", form, module="m", publish=lambda: None)
    assert json.loads(sent["config_json"]) == {"name": "mine", "steps": 7}


@pytest.mark.parametrize(
    "chosen, cpus, gpus",
    [
        ({"num_workers": 2}, 2, 0),
        ({"num_workers": 2, "cores_per_worker": 3}, 6, 0),
        ({"num_workers": 4, "min_workers": 2, "cores_per_worker": 3}, 6, 0),
        ({"num_workers": 2, "cores_per_worker": 3, "use_gpu": True}, 2, 2),
    ],
)
def test_the_cluster_must_have_the_cores_of_the_fewest_workers(played, monkeypatch, chosen, cpus, gpus):
    asked = {}
    monkeypatch.setattr(ray_job, "check_resources", lambda client, **k: asked.update(k))
    monkeypatch.setattr("flows.prefect_flows.result_artifacts.publish_soup", lambda config: None)
    pretrain_soe.fn(Pretrain(**chosen))
    assert asked == {"cpus": cpus, "gpus": gpus}


def test_no_job_is_submitted_that_nobody_could_follow(played, monkeypatch):
    monkeypatch.setattr(carry_out, "ProgressArtifacts", raising(ConnectionError("no server")))
    with pytest.raises(ConnectionError):
        run()
    assert "submit" not in played


def test_a_cluster_that_does_not_say_whether_the_job_runs_gets_no_second_one(played, monkeypatch):
    monkeypatch.setattr(ray_job, "still_running", raising(ray_job.JobError("the job run is lost")))
    assert run().message == "error: the job run is lost"
    assert "submit" not in played and played[-1] == "close"


def test_a_run_that_is_interrupted_stops_its_job_and_says_if_it_could_not(played, monkeypatch, caplog):
    monkeypatch.setattr(ray_job_log, "follow", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert played[-2:] == ["stop", "close"]
    monkeypatch.setattr(ray_job, "stop", raising(ray_job.JobError("the Ray job was not stopped")))
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.INFO, "played"):
        run()
    assert "the Ray job was not stopped" in caplog.text


def test_a_cancelled_run_stops_all_its_jobs_though_one_of_them_cannot_be(monkeypatch, capsys):
    def stop(client, job_id):
        if job_id.endswith("2"):
            raise ray_job.JobError(f"{job_id} was not stopped")
        return True

    monkeypatch.setattr(ray_job, "connect", lambda: None)
    monkeypatch.setattr(ray_job, "stop", stop)
    carry_out.stop_on_cancellation(
        SimpleNamespace(name="f"), SimpleNamespace(id="r", run_count=2), SimpleNamespace()
    )
    assert capsys.readouterr().out == "error: f-r-2 was not stopped\nStopped the Ray job f-r-1.\n"
